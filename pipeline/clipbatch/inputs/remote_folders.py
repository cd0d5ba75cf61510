"""Folders and images in stores, and single images on the web.

We list a folder of a store (a prefix) folder by folder, in the order of the same tree on a disk. While one folder is
processed, we request the listings of the next ones. Memory depends on the largest folder, not on the size of the tree.
"""

from __future__ import annotations

import functools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.folders import LEFTOVERS, is_image_name, is_leftover
from clipbatch.inputs.lister import BATCH_ROWS
from clipbatch.inputs.opening import store_error
from clipbatch.inputs.sidecars import CaptionFiles
from clipbatch.storage import stores
from clipbatch.storage.retries import patiently
from clipbatch.storage.uris import folder_of, is_url, name_of

# How many folders we list at the same time.
AHEAD = 16

# What the report counts keys under which a store can neither be listed nor read.
ODD_KEYS = "(keys with an empty part, '.' or '..', as in a//b and ./a, which cannot be read: copy them to other keys)"

# The entries of a folder, in byte order: the name, '' if it is empty, and whether it is a folder.
Entries = deque[tuple[str, bool]]


@functools.lru_cache(maxsize=1)
def root_entries(root: str) -> tuple[tuple[str, bool], ...]:
    """The entries of the folder `root` of a store, a url without a slash at its end. Cached until the next listing.

    Raises: as `entries`.
    """
    return tuple(entries(root))


class RemoteImage:
    """One image in a store or on the web, named on the command line."""

    incomplete: Sequence[str] = ()

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self.captions = CaptionFiles(settings)
        self.passed_over: Counter[str] = Counter()

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        if not is_url(text) or text.endswith("/"):
            return False
        return is_image_name(name_of(text)) or (settings.all_files and (stores.is_web(text) or _is_object(text)))

    def identity(self) -> str:
        return self.text

    def fields(self) -> list[pa.Field]:
        return self.captions.fields()

    def batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        yield from self.captions.batches([self.text], folder_of(self.text), self.passed_over)


class RemoteFolder:
    """A folder of a store, listed depth first, names in byte order."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        if stores.is_web(text):
            raise InputError(
                f"{text} is not the url of an image, and web servers do not list folders: write the images' urls into "
                "a .txt manifest, one per line; --all-files takes a url whatever its suffix"
            )
        self.text, self._all_files = text, settings.all_files
        self.captions = CaptionFiles(settings)
        self.passed_over: Counter[str] = Counter()
        self.incomplete: list[str] = []
        self._root = text.rstrip("/")
        stores.open_store(text)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return is_url(text)

    def identity(self) -> str:
        return self._root

    def fields(self) -> list[pa.Field]:
        return self.captions.fields()

    def batches(self, limit: int | None = None) -> Iterator[pa.RecordBatch]:
        images, has_images = islice(self._images(), limit), False
        try:
            while urls := list(islice(images, BATCH_ROWS)):
                has_images = True
                yield from self.captions.batches(urls, self._root, self.passed_over)
        finally:
            self.captions.discount(self.passed_over)
        if not has_images:
            other = sum(self.passed_over.values())
            raise InputError(
                f"{self.text} holds no images ({other} other files): --all-files takes every file, whatever its suffix"
            )

    def _images(self) -> Iterator[str]:
        """The urls of the images. Counts the other files."""
        for name in self._walk():
            url = f"{self._root}/{name}"
            if stores.is_odd_key(url):
                self.passed_over[ODD_KEYS] += 1
            elif not self._all_files and is_leftover(name):
                self.passed_over[LEFTOVERS] += 1
            elif is_image_name(name) or (self._all_files and not self.captions.is_one(name)):
                yield url
            else:
                self.passed_over[os.path.splitext(name)[1].lower()] += 1

    def _walk(self) -> Iterator[str]:
        """The files, as paths relative to the root."""
        pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="list")
        try:
            stack = [_Folder("", self._entries(""))]
            root_entries.cache_clear()  # it may hold millions of names
            while stack:
                folder = stack[-1]
                folder.look_ahead(pool, self._entries)
                if not folder.entries:
                    stack.pop()
                    continue
                name, is_folder = folder.entries.popleft()
                path = folder.path + name
                if not name:  # keys with an empty part: pyarrow cannot list them, so they count once for a folder
                    self.passed_over[ODD_KEYS] += 1
                    continue
                if is_folder:
                    stack.append(_Folder(f"{path}/", folder.ahead.popleft().result()))
                else:
                    yield path
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _entries(self, path: str) -> Entries:
        """The entries of a folder. path: relative to the root, '' or with a slash at its end. Raises: InputError."""
        try:
            return entries(f"{self._root}/{path}") if path else deque(root_entries(self._root))
        except FileNotFoundError as error:
            if path:  # somebody removed it after we listed its parent
                self.incomplete.append(f"{self._root}/{path}")
                return deque()
            raise InputError(
                f"there is nothing at {self._root}/: name a folder (a prefix), an image, a manifest, a table or an "
                "archive"
            ) from error


def entries(url: str) -> Entries:
    """The entries of a folder of a store. Raises: FileNotFoundError; InputError if the store cannot list it."""
    from pyarrow.fs import FileSelector, FileType

    store, place = stores.open_store(url)
    try:
        infos = patiently(lambda: _listed(store, FileSelector(place, recursive=False)), url)
    except (OSError, ValueError) as error:
        raise store_error(f"list {url.rstrip('/')}/", error) from error
    if infos is None:
        raise FileNotFoundError(url)
    names = [
        (info.base_name if info.path.rstrip("/") != place else "", info.type == FileType.Directory) for info in infos
    ]
    return deque(sorted(names, key=lambda entry: os.fsencode(entry[0])))


def _listed(store: Any, selector: Any) -> list[Any] | None:
    try:
        return list(store.get_file_info(selector))
    except FileNotFoundError:
        return None


class _Folder:
    """A folder that is being listed, with the pending listings of its next subfolders."""

    def __init__(self, path: str, entries: Entries) -> None:
        self.path, self.entries = path, entries
        self.ahead: deque[Future[Entries]] = deque()
        self._folders = iter([name for name, is_folder in entries if is_folder and name])

    def look_ahead(self, pool: ThreadPoolExecutor, list_folder: Callable[[str], Entries]) -> None:
        """Request the listings of up to `AHEAD` subfolders."""
        while len(self.ahead) < AHEAD and (name := next(self._folders, None)) is not None:
            self.ahead.append(pool.submit(list_folder, f"{self.path}{name}/"))


def _is_object(url: str) -> bool:
    """Whether `url` is an object of the store, and not just a folder."""
    from pyarrow.fs import FileType

    store, path = stores.open_store(url)
    try:
        return bool(store.get_file_info(path).type == FileType.File)
    except Exception as error:
        raise store_error(f"look at {url}", error) from error
