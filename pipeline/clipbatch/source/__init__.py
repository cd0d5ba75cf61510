"""List the input: names, no bytes. One lister a kind of input, each yielding Arrow batches.

A lister is a class with `accepts(text, settings)`, `batches()`, `passed_over` and `identity`; a further kind of input
is one more module and its line in `LISTERS`. Rows have the columns `uri` (string, verbatim as listed) and `root`
(the absolute folder that a relative uri starts from), and whatever else the input carries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.source.files import Directory, ImageFile
from clipbatch.source.text import TextManifest


class Lister(Protocol):
    """One input of a run."""

    passed_over: Counter[str]
    """Files that were not taken, by suffix; complete when `batches` has ended."""

    def __init__(self, text: str, settings: SourceSettings) -> None: ...

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        """Whether `text`, an argument of the command line, is of this lister's kind."""

    def identity(self) -> str:
        """What makes it the same input again: its place, and a digest where it is a file of names."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in an order that depends on the input alone."""


LISTERS: tuple[type[Lister], ...] = (Directory, TextManifest, ImageFile)


def listers(settings: SourceSettings) -> list[Lister]:
    """A lister for each input.

    Raises: InputError for an input that is not there or of no known kind.
    """
    return [_lister(text, settings) for text in settings.inputs]


def _lister(text: str, settings: SourceSettings) -> Lister:
    for kind in LISTERS:
        if kind.accepts(text, settings):
            return kind(text, settings)
    raise InputError(
        f"input {text!r} is neither a folder, an image file nor a .txt manifest: check the name, "
        "or use --all-files to take a file whatever its suffix"
    )


def rows(inputs: list[Lister], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The rows of all inputs in turn, `limit` at most."""
    left = limit
    for lister in inputs:
        for batch in lister.batches():
            if left is not None:
                batch = batch.slice(0, left)
                left -= batch.num_rows
            yield batch
            if left == 0:
                return
