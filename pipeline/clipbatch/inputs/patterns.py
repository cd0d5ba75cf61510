"""A pattern of names, expanded here, since millions of names fit no command line.

A file that bears the pattern's very name wins over it: patterns are what no other lister accepts. Where a pattern
matches images, they are the input, and other files that it matches are passed over, as in a folder; where it matches
none, each match is an input of its own: an archive, a manifest, a folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.folders import LEFTOVERS, ImageFile, is_image_name, is_leftover, root_of
from clipbatch.inputs.globbing import MAGIC, far_matches, is_far_pattern, matches, words
from clipbatch.inputs.lister import BATCH_ROWS, LISTED, batch
from clipbatch.storage.uris import folder_of, is_url

if TYPE_CHECKING:
    from clipbatch.inputs.lister import Lister
    from clipbatch.inputs.listing import Listing


_MAX_WORDS = 100_000


def is_pattern(text: str) -> bool:
    """Whether `text` has braces with alternatives, or is a path with `*`, `?` or `[`, or a url of a store with `*`."""
    return next(words(text)) != text or bool(is_far_pattern(text) if is_url(text) else MAGIC.search(text))


class Pattern:
    """All inputs of one pattern. What it matches later does not change a run that has begun."""

    def __init__(
        self,
        text: str,
        settings: SourceSettings,
        kind_of: Callable[[str, SourceSettings], type[Lister] | None],
        join: Callable[[list[Lister]], Listing],
    ) -> None:
        """kind_of: finds the lister of a match. join: makes one listing of several."""
        self.text, self._settings, self._kind_of, self._join = text, settings, kind_of, join
        self.passed_over: Counter[str] = Counter()
        self._listing: Listing | None = None

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return is_pattern(text)

    def identity(self) -> str:
        return self.text if is_url(self.text) else os.path.abspath(self.text)

    def fields(self) -> list[pa.Field]:
        return list(self._joined().schema)[len(LISTED) :]

    def batches(self) -> Iterator[pa.RecordBatch]:
        listing = self._joined()
        yield from listing.batches()
        self.passed_over += listing.passed_over()

    def _joined(self) -> Listing:
        """The matches as one listing. Raises: InputError where there are none."""
        if self._listing is None:
            found = self._found()
            inputs = self._inputs(found)
            if not inputs:
                raise InputError(
                    f"of the {len(found)} files that the pattern {self.text!r} matches, none is an image or another "
                    "input: --all-files takes every file, whatever its suffix"
                )
            self._listing = self._join(inputs)
        return self._listing

    def _found(self) -> list[tuple[str, bool]]:
        """Each match, and whether it is a folder."""
        found: list[tuple[str, bool]] = []
        for number, word in enumerate(words(self.text)):
            if number == _MAX_WORDS:
                raise InputError(f"the braces of {self.text!r} stand for more than {_MAX_WORDS} names: use a manifest")
            if is_url(word):
                found += self._there(word) if is_far_pattern(word) else [(word, word.endswith("/"))]
            elif MAGIC.search(word) and not os.path.lexists(word):
                found += self._there(word)
            elif os.path.lexists(word):
                found.append((word, os.path.isdir(word)))
            else:
                raise InputError(f"{word!r} of {self.text!r} is not there: check the range, or leave it out")
        return found

    def _there(self, word: str) -> list[tuple[str, bool]]:
        found = far_matches(word) if is_url(word) else matches(word, self._unreadable)
        if not found:
            place = "" if is_url(word) else f", from {os.getcwd()!r}"
            raise InputError(f"nothing matches the pattern {word!r}{place}: check it, or leave it out")
        return found

    def _is_leftover(self, name: str, is_folder: bool) -> bool:
        """Whether what is matched is a leftover, which is counted, in a place that the pattern does not name."""
        named = any(map(is_leftover, (self.text, f"{self.text}/")))
        if self._settings.all_files or named or not is_leftover(f"{name}/" if is_folder else name):
            return False
        self.passed_over[LEFTOVERS] += 1
        return True

    def _unreadable(self, folder: str) -> None:
        self.passed_over[f"({folder or '.'} cannot be listed)"] = 1

    def _inputs(self, found: list[tuple[str, bool]]) -> list[Lister]:
        """A lister for every match, neighbouring image files under one."""
        found = [match for match in found if not self._is_leftover(*match)]
        images_alone = any(is_image_name(name) and not is_folder for name, is_folder in found)
        inputs: list[Lister] = []
        files: list[str] = []
        for name, is_folder in found:
            kind: type[Lister] | None = None
            if not is_folder and (is_image_name(name) or (images_alone and self._settings.all_files)):
                kind = ImageFile
            elif is_folder or not images_alone:
                kind = self._kind_of(name, self._settings)
            if kind is ImageFile:
                files.append(name)
            elif kind is None:
                self.passed_over[os.path.splitext(name)[1].lower()] += 1
            else:
                if files:
                    inputs.append(_Files(files, self._settings))
                    files = []
                inputs.append(kind(name, self._settings))
        return [*inputs, _Files(files, self._settings)] if files else inputs


class _Files(ImageFile):
    """Image files that a pattern matched."""

    def __init__(self, names: list[str], settings: SourceSettings) -> None:
        super().__init__(names[0], settings)
        self._names = names

    def batches(self) -> Iterator[pa.RecordBatch]:
        names, root = iter(self._names), folder_of(self.text) if is_url(self.text) else root_of(self.text)
        while some := list(islice(names, BATCH_ROWS)):
            yield batch(some, root)
