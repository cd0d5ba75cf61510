"""Decide whether the first line of a CSV or TSV file is a header or a row, from its cells and those below.

The first line is a row if it has the name of an image in a column whose other cells name images too. It is a header if
one of its cells is a usual name of such a column. Otherwise it is a header as well, unless one of its cells has the
same form as those below. Then we cannot tell.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from clipbatch.inputs.folders import is_image_name
from clipbatch.inputs.lister import NAMES
from clipbatch.storage.uris import is_data_uri, is_url, name_of

_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"[0-9]+")
_NUMBERED = re.compile(r"column_[0-9]+")


def numbered(count: int) -> list[str]:
    """The column names of a file without a header."""
    return [f"column_{number}" for number in range(1, count + 1)]


def looks_like_image(cell: str) -> bool:
    """Whether a cell is the name of an image file, a url, or a data URI."""
    cell = cell.strip().strip('"')
    return is_url(cell) or is_data_uri(cell[:200]) or is_image_name(name_of(cell))


def image_columns(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Numbers, from 0, of the columns in which at least half of the filled cells name images."""
    columns = ([row[at] for row in rows if len(row) == width and row[at]] for at in range(width))
    return [at for at, cells in enumerate(columns) if cells and 2 * sum(map(looks_like_image, cells)) >= len(cells)]


def is_row(rows: Sequence[Sequence[str]], named: Collection[str]) -> bool | None:
    """Whether the first of `rows` is a row like the others; None if we cannot tell.

    named: the columns that the settings name.
    """
    first = rows[0]
    below = [row for row in rows[1:] if len(row) == len(first)]
    if any(name in first for name in named):
        return False
    if any(map(_NUMBERED.fullmatch, named)):
        return True
    cells = [[row[at] for row in below if row[at]] for at in range(len(first))]
    is_named = any(name.lower() in NAMES and name not in column for name, column in zip(first, cells, strict=True))
    named_images = {at for at, cell in enumerate(first) if looks_like_image(cell)}
    alike = named_images.intersection(image_columns(below, len(first))) if below else named_images
    if alike and not is_named:
        return True
    if alike or (named_images and not is_named):
        return None
    if is_named:
        return False
    return None if _is_like(first, cells) else False


def _is_like(first: Sequence[str], cells: Sequence[Sequence[str]]) -> bool:
    """Whether a cell of `first` has digits or a slash, and the same form as most cells below it.

    Cells that hold consecutive numbers do not count: columns for classes often have such names.
    """
    numbers = [int(name) for name in first if name.isascii() and name.isdigit() and len(name) < 10]
    consecutive = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for name, column in zip(first, cells, strict=True):
        form = _form(name)
        if not column or not ("0" in form or "/" in form) or (consecutive and name.isdigit()):
            continue
        if 5 * sum(_form(cell) == form for cell in column) >= 4 * len(column):
            return True
    return False


def _form(cell: str) -> str:
    """`cell` with `a` for letters and `0` for digits: `a/0.a` for `photos/17.jpg`."""
    return _DIGITS.sub("0", _LETTERS.sub("a", cell))
