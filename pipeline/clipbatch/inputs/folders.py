"""Folders and single image files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import AnyStr

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.lister import BATCH_ROWS
from clipbatch.inputs.sidecars import CaptionFiles

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_RARE = (".avif", ".heic", ".heif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm")
SUFFIXES = frozenset({*_COMMON, *_RARE})
# The key under which the listing counts leftovers.
LEFTOVERS = "(leftovers of macOS, NAS boxes and file managers, such as ._* and @eaDir)"
# AppleDouble files; folders of macOS zips, netatalk, Synology, QNAP; folders of thumbnails.
_LEFTOVER = re.compile(r"(?:^|/)(?:\._[^/]*$|(?:__MACOSX|\.AppleDouble|@eaDir|\.@__thumb|\.thumbnails)/)")


def is_image_name(name: str) -> bool:
    """Whether the suffix of `name` is in `SUFFIXES`, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_leftover(name: str) -> bool:
    """Whether `name`, relative to the input, is a file that macOS, a NAS or a file manager leaves beside images."""
    return _LEFTOVER.search(name) is not None


class Directory:
    """A folder, listed depth first, names in byte order. Follows links to folders, unless they lead back to a parent.

    Everything with the name of an image becomes a row, even a folder or a pipe, so that the output shows that it could
    not be read. A folder with such a name is listed as well.
    """

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text, self._all_files = text, settings.all_files
        self.captions = CaptionFiles(settings)
        self.passed_over: Counter[str] = Counter()
        self.incomplete: list[str] = []

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return os.path.isdir(text)

    def identity(self) -> str:
        return os.path.abspath(self.text)

    def fields(self) -> list[pa.Field]:
        return self.captions.fields()

    def batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        root, images, has_images = root_of(self.text), islice(self._walk(), limit), False
        try:
            while names := list(islice(images, BATCH_ROWS)):
                has_images = True
                yield from self.captions.batches(names, root, self.passed_over)
        finally:
            self.captions.discount(self.passed_over)
        if not has_images:
            if self.incomplete:
                raise InputError(
                    f"{self.text} holds no images, and {self.incomplete[0]} leads nowhere: put back what it leads to, "
                    "or remove it"
                )
            other = sum(self.passed_over.values())
            raise InputError(
                f"{self.text} holds no images ({other} other files): --all-files takes every file, whatever its suffix"
            )

    def _walk(self) -> Iterator[str]:
        """The paths of the images, depth first. Uses a list as stack, since trees may be deeper than Python's stack."""
        try:
            stack = [_entries(self.text)]
        except OSError as error:
            raise InputError(
                f"cannot list the folder {self.text!r}: {error.strerror}; make it readable, or leave it out"
            ) from error
        parents = [_identity(self.text)]
        while stack:
            path, inner, lost = next(stack[-1], (None, False, False))
            if path is None:
                stack.pop()
                parents.pop()
                continue
            leftover = not self._all_files and is_leftover(path[len(self.text) :])
            if leftover:
                self.passed_over[LEFTOVERS] += 0 if inner else 1
            elif is_image_name(path) or (self._all_files and not inner and not self.captions.is_one(path)):
                yield path
            elif not inner:
                self.passed_over[os.path.splitext(path)[1].lower()] += 1
            if lost and not leftover:
                self.incomplete.append(path)
            if inner:
                try:
                    identity, entries = _identity(path), _entries(path)
                except OSError:  # make it a row, so that the output says that the folder could not be read
                    if not leftover:
                        self.incomplete.append(path)
                    if not (leftover or is_image_name(path)):
                        yield path
                    continue
                if identity not in parents:
                    stack.append(entries)
                    parents.append(identity)


class ImageFile:
    """One image file, named on the command line."""

    incomplete: Sequence[str] = ()

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self.captions = CaptionFiles(settings)
        self.passed_over: Counter[str] = Counter()

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return os.path.lexists(text) and (is_image_name(text) or settings.all_files)

    def identity(self) -> str:
        return os.path.abspath(self.text)

    def fields(self) -> list[pa.Field]:
        return self.captions.fields()

    def batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        yield from self.captions.batches([self.text], root_of(self.text), self.passed_over)


def root_of(text: str) -> str:
    """The folder that a path on the command line is relative to."""
    return "/" if os.path.isabs(text) else os.getcwd()


def is_folder(entry: os.DirEntry[AnyStr]) -> bool:
    """Whether `entry` is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a broken link or a circle of links
        return False


def is_lost(entry: os.DirEntry[AnyStr], *, follows: bool = True) -> bool:
    """Whether `entry`, which is no folder, may have been one: a link that leads nowhere, or one of which the file
    system says nothing. Links with the name of an image are taken for images. follows: whether links to folders are
    followed."""
    try:
        if follows and entry.is_symlink() and not is_image_name(os.fsdecode(entry.name)):
            entry.stat()  # after `is_folder`, this looks at the disk again only where a link leads nowhere
        return False
    except OSError:
        return True


def _entries(folder: str) -> Iterator[tuple[str, bool, bool]]:
    """The paths in `folder` in byte order, whether each is a folder, and whether it is lost. Keeps only names: there
    may be millions."""
    names, folders, lost = [], set(), set()
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            names.append(entry.name)
            if is_folder(entry):
                folders.add(entry.name)
            elif is_lost(entry):
                lost.add(entry.name)
    names.sort()
    return ((os.path.join(folder, os.fsdecode(name)), name in folders, name in lost) for name in names)


def _identity(folder: str) -> tuple[int, int]:  # the same for all paths to one folder
    status = os.stat(folder)
    return status.st_dev, status.st_ino
