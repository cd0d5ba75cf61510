"""Find the rows and the quoted cells in a piece of a CSV or TSV file, with their line numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

BREAK = re.compile(rb"\r\n|\r|\n")


class CellScanner:
    """Moves from quoted cell to quoted cell, and keeps track of the current line and row."""

    def __init__(self, data: bytes, line: int) -> None:
        """line: number of the first line of `data`."""
        # `line` is the current line, `row_line` the first line of the current row, `row_start` where that row starts.
        self.data, self.line, self.row_line, self.row_start = data, line, line, 0
        # Whether the last row continues in the next piece of the file.
        self.incomplete = False
        # The quoted cells that look like rows: where the cell or its row starts, and its line numbers as text.
        self.suspects: list[tuple[int, str]] = []
        self._position = 0
        self._has_returns = b"\r" in data

    def quotes(self, ends: tuple[bytes, ...]) -> Iterator[int]:
        """Positions of the quotation marks that start a cell. Call `skip_to` with the cell's end before the next one.

        ends: what may precede a cell.
        """
        at = 0
        while (at := self.data.find(b'"', max(at, self._position))) >= 0:
            if at == 0 or self.data[at - 1 : at] in ends:
                self._advance(at)
                yield at
            else:
                at += 1

    def skip_to(self, end: int) -> None:
        """Continue after the cell that ends at `end`. Line breaks inside the cell do not end the row."""
        self.line += self._count_breaks(self._position, end)
        self._position = end

    def end(self, more: bool) -> int:
        """Where the last whole row ends. more: whether the file continues after `data`."""
        if not more:
            return len(self.data)
        if not self.incomplete:
            end = self.data.rfind(b"\n", self._position) + 1
            if not end and self._has_returns:  # a "\r" at the very end may be the first half of a line break
                end = self.data.rfind(b"\r", self._position, len(self.data) - 1) + 1
            if end:
                self._advance(end)
        return self.row_start

    def last_break(self, more: bool) -> bytes:
        """The line break to add if the last row of the file lacks one, else b"". more: as in `end`."""
        return b"" if more or self.data.endswith((b"\r", b"\n")) else b"\n"

    def _advance(self, at: int) -> None:
        """Move to `at`. Line breaks on the way end rows."""
        last = self.data.rfind(b"\n", self._position, at)
        if self._has_returns:
            last = max(last, self.data.rfind(b"\r", self._position, at))
        self.line += self._count_breaks(self._position, at)
        if last >= 0:
            self.row_start, self.row_line = last + 1, self.line
        self._position = at

    def _count_breaks(self, start: int, end: int) -> int:
        if self._has_returns:
            return len(BREAK.findall(self.data, start, end))
        return self.data.count(b"\n", start, end)


def end_of_simple_rows(data: bytes, separator: str) -> int:
    """Where the last whole row of `data` ends, if all rows up to there are simple; else 0. Much faster than a scanner.

    Rows are simple if every quotation mark belongs to a properly quoted cell without line breaks or, in TSV, tabs
    inside.
    """
    end = data.rfind(b"\n") + 1
    if data.count(b"\r", 0, end) != data.count(b"\r\n", 0, end):
        return 0
    chars = np.frombuffer(data, np.uint8, end)
    marks = np.flatnonzero(chars == ord('"'))
    if not len(marks):
        return end
    forbidden = "\t\n" if separator == "\t" else "\n"
    positions = [np.flatnonzero(chars == ord(char)) for char in forbidden]
    if len(marks) % 2 or any((np.searchsorted(marks, where) % 2).any() for where in positions):
        return 0
    borders = np.isin(chars, np.frombuffer(f"{separator}\r\n".encode(), np.uint8))
    # Two doubled marks inside a cell also look like a closing and an opening one.
    opening, closing = marks[::2], marks[1::2]
    doubled = closing[:-1] + 1 == opening[1:]
    starts_ok = (opening[0] == 0 or borders[opening[0] - 1]) and (borders[opening[1:] - 1] | doubled).all()
    ends_ok = borders[closing[-1] + 1] and (borders[closing[:-1] + 1] | doubled).all()
    return end if starts_ok and ends_ok else 0


def lines_from(data: bytes, start: int) -> Iterator[str]:
    """The lines from `start` on, with their line breaks. Each byte becomes one character."""
    while line_break := BREAK.search(data, start):
        yield data[start : line_break.end()].decode("latin-1")
        start = line_break.end()
    if start < len(data):
        yield data[start:].decode("latin-1")
