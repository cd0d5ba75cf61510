"""Read whole rows of a CSV or TSV file, a few MiB at a time, with unambiguous quotation marks.

The problem: readers disagree on stray quotation marks. One that is never closed may swallow many rows into one cell
without an error. So we settle every quotation mark here, before Arrow parses the rows.

CSV: a cell that starts with a quotation mark must end with one, and quotation marks inside must be doubled. Anything
else is an error. If the lines of a quoted cell look like the rows around it, the cell is valid CSV, but it may be rows
that a stray quotation mark has swallowed. We keep it and count it, so that the user is told.

TSV: most programs write TSV without quoting.
- A cell counts as quoted if it is properly quoted up to the next tab or line end, as Python and spreadsheets write it.
- A properly quoted cell with tabs or line breaks inside counts as quoted if only then its row has as many columns as
the
  other rows.
- If its row has the right number of columns either way: the lines are rows if all of them name images where other rows
  do. They are one cell, which is counted, if the row names images there but its first line or all its other lines do
  not. Otherwise it is an error.
- All other quotation marks are literal. We return such a cell quoted, with its quotation marks doubled.
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
from clipbatch.inputs.quoted_cells import BREAK, CellScanner, end_of_simple_rows, lines_from

# In a TSV file, a quotation mark is literal if the closing one is further away.
_MAX_TSV_CELL_BYTES = 2**20
_HEAD_LINES = 1000
# From a quotation mark to the one that closes it, or to the end if there is none.
_QUOTED = re.compile(rb'"(?:[^"]++|"")*+("?)')
_END_OF_CELL = re.compile(rb"[\t\r\n]")

csv.field_size_limit(MAX_LINE_BYTES)  # a cell may hold an image as a data URI


@dataclass(frozen=True, slots=True)
class _Shape:
    """What most rows of a file have in common."""

    # Number of columns.
    width: int
    # Numbers, from 0, of the columns whose cells name images.
    images: Sequence[int]

    def looks_like_row(self, cells: Sequence[str]) -> bool:
        """Whether cells name images in the columns where rows do. cells: of a row or of its beginning."""
        return all(looks_like_image(cells[at]) for at in self.images if at < len(cells))


class Rows:
    """The rows of the file `path`. Iterate once."""

    def __init__(self, path: str, separator: str) -> None:
        self._path, self._separator = path, separator
        self._ends = (separator.encode(), b"\r", b"\n", b"")
        self._shape = _Shape(0, ())
        # Number of quoted cells whose lines look like rows.
        self.suspect_cells = 0
        # Line numbers of the first of them, such as `3 to 7`.
        self.first_suspect_lines = ""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yields some whole rows, with the number of their first line. Raises: InputError with file and line."""
        line, rest, more, is_first = 1, b"", True, True
        with open_input(self._path) as file:
            while more:
                try:
                    chunk = file.read(CHUNK_BYTES)
                except OSError as error:
                    raise unreadable(self._path, error) from error
                more = bool(chunk)
                if is_first:
                    chunk, is_first = chunk.removeprefix(codecs.BOM_UTF8), False
                    self._shape = self._shape_of(chunk)
                data = rest + chunk
                if more and (end := end_of_simple_rows(data, self._separator)):
                    yield line, data[:end]
                    line, rest = line + data.count(b"\n", 0, end), data[end:]
                    continue
                scanner = CellScanner(data, line)
                scan = self._scan_tsv if self._separator == "\t" else self._scan_csv
                replacements = scan(scanner, more)
                end = scanner.end(more)
                if end:
                    self._count(scanner, end)
                    yield line, _replace(data, end, replacements) + scanner.last_break(more)
                line, rest = scanner.row_line, data[end:]
                if len(rest) > MAX_LINE_BYTES:
                    raise InputError(
                        f"the row in line {line} of {self._path} has more than {MAX_LINE_BYTES} bytes: look for a "
                        "quotation mark that is not closed"
                    )

    def _count(self, scanner: CellScanner, end: int) -> None:
        """Count the suspect cells before `end`."""
        lines = [lines for at, lines in scanner.suspects if at < end]
        self.suspect_cells += len(lines)
        self.first_suspect_lines = self.first_suspect_lines or next(iter(lines), "")

    def _scan_csv(self, scanner: CellScanner, more: bool) -> list[tuple[int, int, bytes]]:
        """Check all quoted cells of CSV data. Returns no replacements. more: whether the file continues."""
        for at in scanner.quotes(self._ends):
            cell = _QUOTED.match(scanner.data, at)
            assert cell
            if more and cell.end() == len(scanner.data):
                scanner.incomplete = True
                break
            if not cell[1]:
                raise InputError(f"a quotation mark in line {scanner.line} of {self._path} is not closed: close it")
            if scanner.data[cell.end() : cell.end() + 1] not in self._ends:
                line = scanner.line + len(BREAK.findall(cell[0]))
                raise InputError(
                    f"line {line} of {self._path} has text after a closing quotation mark: write a quotation mark "
                    "inside a quoted value twice"
                )
            lines = BREAK.split(cell[0][1:-1])
            if len(lines) > 1 and self._looks_like_rows(scanner, at, [line.decode("latin-1") for line in lines]):
                scanner.suspects.append((at, f"{scanner.line} to {scanner.line + len(lines) - 1}"))
            scanner.skip_to(cell.end())
        return []

    def _looks_like_rows(self, scanner: CellScanner, at: int, lines: list[str]) -> bool:
        """Whether a quoted cell looks like the end of a row, whole rows, and the start of a row.

        at: where the cell starts. lines: its content.
        """
        before = scanner.data[scanner.row_start : at].decode("latin-1")
        column = max(0, len(next(csv.reader(before.splitlines(keepends=True), delimiter=self._separator), [])) - 1)
        width = self._shape.width
        separators = [width - 1 - column, *[width - 1] * (len(lines) - 2), column]
        if width > 1:
            return [line.count(self._separator) for line in lines] == separators
        return bool(self._shape.images) and any(map(looks_like_image, lines[1:]))

    def _scan_tsv(self, scanner: CellScanner, more: bool) -> list[tuple[int, int, bytes]]:
        """Decide, for all cells of TSV data that start with a quotation mark, whether they are quoted.

        Returns a replacement (start, end, new bytes) for each that is not. more: whether the file continues.
        """
        replacements = []
        for at in scanner.quotes(self._ends):
            cell, stop = _QUOTED.match(scanner.data, at), _END_OF_CELL.search(scanner.data, at)
            assert cell
            end = stop.start() if stop else len(scanner.data)
            if more and cell.end() == len(scanner.data) and cell.end() - at <= _MAX_TSV_CELL_BYTES:
                scanner.incomplete = True
                break
            after = scanner.data[cell.end() : cell.end() + 1]
            closed = bool(cell[1]) and after in self._ends and bool(after or not more)
            quoted = closed and (cell.end() == end or self._is_cell(scanner, more))
            if quoted is None:
                scanner.incomplete = True
                break
            if not quoted:
                replacements.append((at, end, b'"' + scanner.data[at:end].replace(b'"', b'""') + b'"'))
            scanner.skip_to(cell.end() if quoted else end)
        return replacements

    def _is_cell(self, scanner: CellScanner, more: bool) -> bool | None:
        """Whether the current cell, which has tabs or line breaks inside, is quoted. None: more data is needed.

        Raises: InputError if we cannot tell.
        """
        reader = csv.reader(lines_from(scanner.data, scanner.row_start), delimiter="\t", strict=True)
        try:
            row = next(reader)
        except csv.Error:
            return None if more and len(scanner.data) - scanner.row_start <= _MAX_TSV_CELL_BYTES else False
        lines = list(islice(lines_from(scanner.data, scanner.row_start), reader.line_num))
        if more and lines[-1][-1] not in "\r\n":
            return None
        split = [line.rstrip("\r\n").split("\t") for line in lines]
        if len(row) != self._shape.width or any(len(cells) != self._shape.width for cells in split):
            return len(row) == self._shape.width
        row_like = [self._shape.looks_like_row(cells) for cells in split]
        if self._shape.images and all(row_like):
            return False
        line_numbers = f"{scanner.row_line} to {scanner.row_line + len(lines) - 1}"
        if not (self._shape.images and self._shape.looks_like_row(row)) or (row_like[0] and any(row_like[1:])):
            raise InputError(
                f"lines {line_numbers} of {self._path} may be one row with a quoted value or several with quotation "
                "marks: write the table as CSV, or leave these marks out"
            )
        scanner.suspects.append((scanner.row_start, line_numbers))
        return True

    def _shape_of(self, head: bytes) -> _Shape:
        """What most rows have in common, judged by the first ones."""
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


def _replace(data: bytes, end: int, replacements: list[tuple[int, int, bytes]]) -> bytes:
    """`data` up to `end`, after the replacements (start, end, new bytes)."""
    pieces, at = list[bytes](), 0
    for start, stop, new in replacements:
        if start >= end:
            break
        pieces += [data[at:start], new]
        at = stop
    return b"".join([*pieces, data[at:end]]) if pieces else data[:end]
