"""Where the rows and the quoted cells of a CSV or TSV file are. Knows nothing of what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

BREAK = re.compile(rb"\r\n|\r|\n")


class Walk:
    """A way through the quoted cells of some rows, which knows where the row begins that it is at."""

    def __init__(self, data: bytes, line: int) -> None:
        """line: number of the first line of `data`."""
        self.data, self.line, self.row_line, self.row_start = data, line, line, 0
        # Whether the row that the way ends in is to be read on first.
        self.incomplete = False
        # Where quoted cells, or their rows, begin that look like rows, and their lines.
        self.swallowing: list[tuple[int, str]] = []
        self._seen = 0
        self._returns = b"\r" in data

    def quotes(self, ends: tuple[bytes, ...]) -> Iterator[int]:
        """Where a cell begins with a quotation mark, in turn; `past` goes on behind it."""
        at = 0
        while (at := self.data.find(b'"', max(at, self._seen))) >= 0:
            if at == 0 or self.data[at - 1 : at] in ends:
                self._to(at)
                yield at
            else:
                at += 1

    def past(self, end: int) -> None:
        """Go on behind the cell that ends at `end`."""
        self.line += self._breaks(self._seen, end)
        self._seen = end

    def end(self, more: bool) -> int:
        """Where the last whole row ends. more: what follows is still to be read."""
        if not more:
            return len(self.data)
        if not self.incomplete:
            end = self.data.rfind(b"\n", self._seen) + 1
            if not end and self._returns:  # at the very end, one may be half of a line break
                end = self.data.rfind(b"\r", self._seen, len(self.data) - 1) + 1
            if end:
                self._to(end)
        return self.row_start

    def last_break(self, more: bool) -> bytes:
        """The line break that the last row of a file lacks. more: as in `end`."""
        return b"" if more or self.data.endswith((b"\r", b"\n")) else b"\n"

    def _to(self, at: int) -> None:
        """Go on to `at`, over line breaks that end rows."""
        last = self.data.rfind(b"\n", self._seen, at)
        if self._returns:
            last = max(last, self.data.rfind(b"\r", self._seen, at))
        self.line += self._breaks(self._seen, at)
        if last >= 0:
            self.row_start, self.row_line = last + 1, self.line
        self._seen = at

    def _breaks(self, start: int, end: int) -> int:
        if self._returns:
            return len(BREAK.findall(self.data, start, end))
        return self.data.count(b"\n", start, end)


def end_of_plain(data: bytes, separator: str) -> int:
    """Where the last whole row of `data` ends, if every quotation mark up to there is of a cell that is properly quoted
    and has neither line breaks nor, in a TSV file, tabs inside; else 0. Much faster than a walk."""
    end = data.rfind(b"\n") + 1
    if data.count(b"\r", 0, end) != data.count(b"\r\n", 0, end):
        return 0
    chars = np.frombuffer(data, np.uint8, end)
    marks = np.flatnonzero(chars == ord('"'))
    if not len(marks):
        return end
    wanted = "\t\n" if separator == "\t" else "\n"
    places = [np.flatnonzero(chars == ord(char)) for char in wanted]
    if len(marks) % 2 or any((np.searchsorted(marks, place) % 2).any() for place in places):
        return 0
    borders = np.isin(chars, np.frombuffer(f"{separator}\r\n".encode(), np.uint8))
    opening, closing = marks[::2], marks[1::2]  # or, inside of a cell, the second and the first one of two
    doubled = closing[:-1] + 1 == opening[1:]
    begun = (opening[0] == 0 or borders[opening[0] - 1]) and (borders[opening[1:] - 1] | doubled).all()
    ended = borders[closing[-1] + 1] and (borders[closing[:-1] + 1] | doubled).all()
    return end if begun and ended else 0


def lines_from(data: bytes, start: int) -> Iterator[str]:
    """The lines from `start` on, with their ends; a character a byte."""
    while found := BREAK.search(data, start):
        yield data[start : found.end()].decode("latin-1")
        start = found.end()
    if start < len(data):
        yield data[start:].decode("latin-1")
