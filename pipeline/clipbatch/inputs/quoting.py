"""Whole rows of a CSV or TSV file, a few MiB at a time, with quotation marks that every reader takes in one way.

CSV: a cell that begins with a quotation mark ends with one, and those inside are doubled. Text after the closing one
is refused, as is one that is never closed. A quoted cell whose lines look like the rows around it is counted: it is
good CSV, and may be rows that a quotation mark has swallowed.

TSV, which most programs write without any quoting: a cell is quoted only where it is properly quoted up to the next tab
or line end, as Python and spreadsheets write it. Every other quotation mark is literal; here it comes out in a quoted
cell. A cell with tabs or line breaks inside, closed properly, counts as quoted where only that gives its row as many
columns as the others have. Where both readings do, the lines are rows if all of them name images where other rows do,
and a cell, which is counted, if the row does and its other lines, or its first, do not; else they are refused.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from clipbatch.errors import InputError
from clipbatch.inputs.header import image_columns, looks_like_image
from clipbatch.inputs.opening import CHUNK_BYTES, MAX_LINE_BYTES, open_input, unreadable
from clipbatch.inputs.row_walk import BREAK, Walk, end_of_plain, lines_from

# A quotation mark in a TSV file whose partner is further away is literal.
_MAX_TSV_CELL_BYTES = 2**20
_HEAD_LINES = 1000
# From a quotation mark to the one that closes it; without that, to the end.
_QUOTED = re.compile(rb'"(?:[^"]++|"")*+("?)')
_END_OF_CELL = re.compile(rb"[\t\r\n]")

csv.field_size_limit(MAX_LINE_BYTES)  # a cell may hold an image as a data URI


@dataclass(frozen=True, slots=True)
class _Shape:
    """How most rows of a file look."""

    # Columns.
    width: int
    # Columns, from 0, whose cells name images.
    images: Sequence[int]

    def looks_like_row(self, cells: Sequence[str]) -> bool:
        """Whether cells, perhaps not all of a row, name images where rows do."""
        return all(looks_like_image(cells[at]) for at in self.images if at < len(cells))


class Rows:
    """The rows of the file at `path`, to be read once."""

    def __init__(self, path: str, separator: str) -> None:
        self._path, self._separator = path, separator
        self._ends = (separator.encode(), b"\r", b"\n", b"")
        self._shape = _Shape(0, ())
        # Quoted cells whose lines look like rows.
        self.swallowing = 0
        # The lines of the first of them.
        self.first_swallowing = ""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, some whole rows). Raises: InputError with file and line."""
        line, rest, more, begun = 1, b"", True, False
        with open_input(self._path) as file:
            while more:
                try:
                    chunk = file.read(CHUNK_BYTES)
                except OSError as error:
                    raise unreadable(self._path, error) from error
                more = bool(chunk)
                if not begun:
                    chunk, begun = chunk.removeprefix(codecs.BOM_UTF8), True
                    self._shape = self._shape_of(chunk)
                data = rest + chunk
                if more and (end := end_of_plain(data, self._separator)):
                    yield line, data[:end]
                    line, rest = line + data.count(b"\n", 0, end), data[end:]
                    continue
                walk = Walk(data, line)
                replaced = self._tsv(walk, more) if self._separator == "\t" else self._csv(walk, more)
                end = walk.end(more)
                if end:
                    self._count(walk, end)
                    yield line, _with(data, end, replaced) + walk.last_break(more)
                line, rest = walk.row_line, data[end:]
                if len(rest) > MAX_LINE_BYTES:
                    raise InputError(
                        f"the row in line {line} of {self._path} has more than {MAX_LINE_BYTES} bytes: look for a "
                        "quotation mark that is not closed"
                    )

    def _count(self, walk: Walk, end: int) -> None:
        """Count what looks like rows in quoted cells, of the rows up to `end`."""
        lines = [lines for at, lines in walk.swallowing if at < end]
        self.swallowing += len(lines)
        self.first_swallowing = self.first_swallowing or next(iter(lines), "")

    def _csv(self, walk: Walk, more: bool) -> list[tuple[int, int, bytes]]:
        """Go over all quoted cells of a CSV file. more: what follows is still to be read."""
        for at in walk.quotes(self._ends):
            cell = _QUOTED.match(walk.data, at)
            assert cell
            if more and cell.end() == len(walk.data):
                walk.incomplete = True
                break
            if not cell[1]:
                raise InputError(f"a quotation mark in line {walk.line} of {self._path} is not closed: close it")
            if walk.data[cell.end() : cell.end() + 1] not in self._ends:
                line = walk.line + len(BREAK.findall(cell[0]))
                raise InputError(
                    f"line {line} of {self._path} has text after a closing quotation mark: write a quotation mark "
                    "inside of a quoted value twice"
                )
            lines = BREAK.split(cell[0][1:-1])
            if len(lines) > 1 and self._swallows(walk, at, [line.decode("latin-1") for line in lines]):
                walk.swallowing.append((at, f"{walk.line} to {walk.line + len(lines) - 1}"))
            walk.past(cell.end())
        return []

    def _swallows(self, walk: Walk, at: int, lines: list[str]) -> bool:
        """Whether `lines`, those of the quoted cell at `at`, are like the end of a row, rows, and the begin of one."""
        begin = walk.data[walk.row_start : at].decode("latin-1")
        column = max(0, len(next(csv.reader(begin.splitlines(keepends=True), delimiter=self._separator), [])) - 1)
        width = self._shape.width
        separators = [width - 1 - column, *[width - 1] * (len(lines) - 2), column]
        if width > 1:
            return [line.count(self._separator) for line in lines] == separators
        return bool(self._shape.images) and any(map(looks_like_image, lines[1:]))

    def _tsv(self, walk: Walk, more: bool) -> list[tuple[int, int, bytes]]:
        """Go over all cells of a TSV file that begin with a quotation mark; what is to replace those that are not
        quoted."""
        replaced = []
        for at in walk.quotes(self._ends):
            cell, stop = _QUOTED.match(walk.data, at), _END_OF_CELL.search(walk.data, at)
            assert cell
            end = stop.start() if stop else len(walk.data)
            if more and cell.end() == len(walk.data) and cell.end() - at <= _MAX_TSV_CELL_BYTES:
                walk.incomplete = True
                break
            after = walk.data[cell.end() : cell.end() + 1]
            closed = bool(cell[1]) and after in self._ends and bool(after or not more)
            quoted = closed and (cell.end() == end or self._is_cell(walk, more))
            if quoted is None:
                walk.incomplete = True
                break
            if not quoted:
                replaced.append((at, end, b'"' + walk.data[at:end].replace(b'"', b'""') + b'"'))
            walk.past(cell.end() if quoted else end)
        return replaced

    def _is_cell(self, walk: Walk, more: bool) -> bool | None:
        """Whether the quoted cell with tabs or line breaks that `walk` is at counts as one; None: read on first.

        Raises: InputError where nobody can tell.
        """
        reader = csv.reader(lines_from(walk.data, walk.row_start), delimiter="\t", strict=True)
        try:
            row = next(reader)
        except csv.Error:
            return None if more and len(walk.data) - walk.row_start <= _MAX_TSV_CELL_BYTES else False
        lines = list(islice(lines_from(walk.data, walk.row_start), reader.line_num))
        if more and lines[-1][-1] not in "\r\n":
            return None
        split = [line.rstrip("\r\n").split("\t") for line in lines]
        if len(row) != self._shape.width or any(len(cells) != self._shape.width for cells in split):
            return len(row) == self._shape.width
        alike = [self._shape.looks_like_row(cells) for cells in split]
        if self._shape.images and all(alike):
            return False
        if not (self._shape.images and self._shape.looks_like_row(row)) or (alike[0] and any(alike[1:])):
            raise InputError(
                f"lines {walk.row_line} to {walk.row_line + len(lines) - 1} of {self._path} may be one row with a "
                "quoted value or several with quotation marks: write the table as CSV, or leave these marks out"
            )
        walk.swallowing.append((walk.row_start, f"{walk.row_line} to {walk.row_line + len(lines) - 1}"))
        return True

    def _shape_of(self, head: bytes) -> _Shape:
        """How most rows look, by the first of them."""
        lines = [line.decode("latin-1") for line in BREAK.split(head, _HEAD_LINES)[:_HEAD_LINES]]
        if self._separator != "\t":
            rows = list(csv.reader((f"{line}\n" for line in lines), delimiter=self._separator))
            rows = [row for row in rows if row]
        else:
            rows = [[cell.strip('"') for cell in line.split("\t")] for line in lines if line]
            try:
                width = len(next(csv.reader((f"{line}\n" for line in lines if line), delimiter="\t", strict=True), []))
            except csv.Error:
                width = len(rows[0])
            rows = [["x"] * width, *rows]
        if not rows:
            return _Shape(0, ())
        return _Shape(len(rows[0]), image_columns(rows[1:] or rows, len(rows[0])))


def _with(data: bytes, end: int, replaced: list[tuple[int, int, bytes]]) -> bytes:
    """`data` up to `end`, with other bytes in place of some."""
    pieces, at = list[bytes](), 0
    for start, stop, instead in replaced:
        if start >= end:
            break
        pieces += [data[at:start], instead]
        at = stop
    return b"".join([*pieces, data[at:end]]) if pieces else data[:end]
