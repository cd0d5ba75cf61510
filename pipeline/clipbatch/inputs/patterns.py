"""Patterns as inputs. We expand them ourselves, since millions of names do not fit on a command line.

If a file has exactly the name of the pattern, that file is the input. If the pattern matches images, these are the
input, and other files that it matches are left out, as in a folder. If it matches no images, each match is an input of
its own: an archive, a manifest, a folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.folders import LEFTOVERS, ImageFile, is_image_name, is_leftover, root_of
from clipbatch.inputs.globbing import MAGIC, expand_braces, is_remote_pattern, local_matches, remote_matches
from clipbatch.inputs.lister import BATCH_ROWS, LISTED
from clipbatch.inputs.sidecars import CaptionFiles
from clipbatch.storage.uris import folder_of, is_url

if TYPE_CHECKING:
    from clipbatch.inputs.lister import Lister
    from clipbatch.inputs.listing import Listing


_MAX_WORDS = 100_000


def is_pattern(text: str) -> bool:
    """Whether `text` has braces with alternatives, is a path with `*`, `?` or `[`, or is a url of a store with `*`."""
    return next(expand_braces(text)) != text or bool(is_remote_pattern(text) if is_url(text) else MAGIC.search(text))


class Pattern:
    """All inputs that a pattern matches. The pattern is the identity, so new matches do not change a run."""

    def __init__(
        self,
        text: str,
        settings: SourceSettings,
        kind_of: Callable[[str, SourceSettings], type[Lister] | None],
        join: Callable[[list[Lister], pa.Schema | None], Listing],
    ) -> None:
        """kind_of: returns the class of the lister for a match. join: combines several listers into one listing, whose
        columns have the types of a schema."""
        self.text, self._settings, self._kind_of, self._join = text, settings, kind_of, join
        self.passed_over: Counter[str] = Counter()
        self.incomplete: list[str] = []
        self._members: list[Lister] = []
        self._listing: Listing | None = None

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return is_pattern(text)

    def identity(self) -> str:
        return self.text if is_url(self.text) else os.path.abspath(self.text)

    def fields(self) -> list[pa.Field]:
        return list(self._joined().schema)[len(LISTED) :]

    def expect(self, types: Mapping[str, pa.DataType]) -> None:
        """As `TableManifest.expect`, for all inputs that the pattern matches."""
        self._joined()
        self._listing = self._join(self._members, pa.schema(types.items()))

    def batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        listing = self._joined()
        try:
            yield from listing.all_batches(limit)
        finally:
            for member in self._members:
                if isinstance(member, _Files):  # a folder has done so itself
                    member.captions.discount(self.passed_over)
            self.passed_over += listing.passed_over()
            self.incomplete += listing.incomplete()

    def captions(self) -> list[CaptionFiles]:
        """Those of all matches."""
        return self._joined().captions()

    def _joined(self) -> Listing:
        """The matches as one listing. Raises: InputError if there are none."""
        if self._listing is None:
            matches = self._matches()
            inputs = self._inputs(matches)
            if not inputs:
                raise InputError(
                    f"of the {len(matches)} files that the pattern {self.text!r} matches, none is an image or another "
                    "input: --all-files takes every file, whatever its suffix"
                )
            self._members, self._listing = inputs, self._join(inputs, None)
        return self._listing

    def _matches(self) -> list[tuple[str, bool]]:
        """Each match, and whether it is a folder."""
        matches: list[tuple[str, bool]] = []
        for number, word in enumerate(expand_braces(self.text)):
            if number == _MAX_WORDS:
                raise InputError(f"the braces of {self.text!r} stand for more than {_MAX_WORDS} names: use a manifest")
            if is_url(word):
                matches += self._glob(word) if is_remote_pattern(word) else [(word, word.endswith("/"))]
            elif MAGIC.search(word) and not os.path.lexists(word):
                matches += self._glob(word)
            elif os.path.lexists(word):
                matches.append((word, os.path.isdir(word)))
                if not (is_image_name(word) or os.path.exists(word)):
                    self._lost(word)
            else:
                raise InputError(f"{word!r} of {self.text!r} does not exist: check the range, or leave it out")
        return matches

    def _glob(self, word: str) -> list[tuple[str, bool]]:
        matches = remote_matches(word) if is_url(word) else local_matches(word, self._unreadable, self._lost)
        if not matches:
            place = "" if is_url(word) else f", from {os.getcwd()!r}"
            raise InputError(f"nothing matches the pattern {word!r}{place}: check it, or leave it out")
        return matches

    def _is_leftover(self, name: str, is_folder: bool) -> bool:
        """Whether a match is a leftover, unless the pattern names leftovers itself. Counts it."""
        named = any(map(is_leftover, (self.text, f"{self.text}/")))
        if self._settings.all_files or named or not is_leftover(f"{name}/" if is_folder else name):
            return False
        self.passed_over[LEFTOVERS] += 1
        return True

    def _unreadable(self, folder: str) -> None:
        self.passed_over[f"({folder or '.'} cannot be listed)"] = 1
        self.incomplete.append(folder or ".")

    def _lost(self, name: str) -> None:
        if self._settings.all_files or not is_leftover(name):
            self.incomplete.append(name)

    def _inputs(self, matches: list[tuple[str, bool]]) -> list[Lister]:
        """The listers of all matches. Consecutive image files share one."""
        matches = [match for match in matches if not self._is_leftover(*match)]
        captions = CaptionFiles(self._settings)
        images_only = any(is_image_name(name) and not is_folder for name, is_folder in matches)
        takes_all = images_only and self._settings.all_files
        inputs: list[Lister] = []
        files: list[str] = []
        for name, is_folder in matches:
            kind: type[Lister] | None = None
            if not is_folder and (is_image_name(name) or (takes_all and not captions.is_one(name))):
                kind = ImageFile
            elif is_folder or not images_only:
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
    """Several image files."""

    def __init__(self, names: list[str], settings: SourceSettings) -> None:
        super().__init__(names[0], settings)
        self._names = names

    def batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        names, root = islice(self._names, limit), folder_of(self.text) if is_url(self.text) else root_of(self.text)
        while some := list(islice(names, BATCH_ROWS)):
            yield from self.captions.batches(some, root, self.passed_over)
