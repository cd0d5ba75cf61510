"""Folders and images in stores, single images of the web, and copies of manifests that lie there.

A folder of a store (a prefix) is listed folder by folder, in the order in which the same tree on a disk would be, some
folders ahead. So memory is bounded by the largest single folder and not by the tree.
"""

from __future__ import annotations

import functools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.folders import LEFTOVERS, is_image_name, is_leftover
from clipbatch.inputs.lister import BATCH_ROWS, batch
from clipbatch.inputs.opening import refused
from clipbatch.storage import stores
from clipbatch.storage.hosts import patiently
from clipbatch.storage.uris import folder_of, is_url, name_of

# Folders listed at the same time.
AHEAD = 16

ODD_KEYS = "(keys with an empty part, '.' or '..', as in a//b and ./a, which cannot be read: copy them to other keys)"

# Name, '' for one that is empty, and whether it is a folder, in byte order.
Entries = deque[tuple[str, bool]]


@functools.lru_cache(maxsize=1)
def top(root: str) -> tuple[tuple[str, bool], ...]:
    """What is right in the folder `root` of a store (no slash at its end); asked for once, until the next listing.

    Raises: as `entries`.
    """
    return tuple(entries(root))


class RemoteImage:
    """One image of a store or of the web, named on the command line."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self.passed_over: Counter[str] = Counter()

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        if not is_url(text) or text.endswith("/"):
            return False
        return is_image_name(name_of(text)) or (settings.all_files and (stores.is_web(text) or _is_object(text)))

    def identity(self) -> str:
        return self.text

    def fields(self) -> list[pa.Field]:
        return []

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield batch([self.text], folder_of(self.text))


class RemoteFolder:
    """Everything under a url of a store: depth first, names in byte order."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        if stores.is_web(text):
            raise InputError(
                f"{text} names no image, and a web server lists no folders: write the images' urls into a .txt "
                "manifest, one a line; --all-files takes a url whatever its suffix"
            )
        self.text, self._all_files = text, settings.all_files
        self.passed_over: Counter[str] = Counter()
        self._root = text.rstrip("/")
        stores.open_store(text)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return is_url(text)

    def identity(self) -> str:
        return self._root

    def fields(self) -> list[pa.Field]:
        return []

    def batches(self) -> Iterator[pa.RecordBatch]:
        names, found = [], False
        for name in self._walk():
            url = f"{self._root}/{name}"
            if stores.is_odd_key(url):
                self.passed_over[ODD_KEYS] += 1
            elif not self._all_files and is_leftover(name):
                self.passed_over[LEFTOVERS] += 1
            elif self._all_files or is_image_name(name):
                names.append(url)
            else:
                self.passed_over[os.path.splitext(name)[1].lower()] += 1
            if len(names) == BATCH_ROWS:
                found = True
                yield batch(names, self._root)
                names = []
        if names:
            yield batch(names, self._root)
        elif not found:
            other = sum(self.passed_over.values())
            raise InputError(
                f"{self.text} holds no images ({other} other files): --all-files takes every file, whatever its suffix"
            )

    def _walk(self) -> Iterator[str]:
        """The files, by their path from the root."""
        pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="list")
        try:
            stack = [_Folder("", self._entries(""))]
            top.cache_clear()  # there may be millions
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
        """What the folder `path`, '' or ending in a slash, holds. Raises: InputError."""
        try:
            return entries(f"{self._root}/{path}") if path else deque(top(self._root))
        except FileNotFoundError as error:
            if path:  # emptied since the folder above was listed
                return deque()
            raise InputError(
                f"there is nothing at {self._root}/: name a folder (a prefix), an image, a manifest, a table or an "
                "archive"
            ) from error


def entries(url: str) -> Entries:
    """What the folder of a store holds. Raises: FileNotFoundError; InputError."""
    from pyarrow.fs import FileSelector, FileType

    store, place = stores.open_store(url)
    try:
        infos = patiently(lambda: _listed(store, FileSelector(place, recursive=False)), url)
    except (OSError, ValueError) as error:
        raise refused(f"list {url.rstrip('/')}/", error) from error
    if infos is None:
        raise FileNotFoundError(url)
    found = [
        (info.base_name if info.path.rstrip("/") != place else "", info.type == FileType.Directory) for info in infos
    ]
    return deque(sorted(found, key=lambda entry: os.fsencode(entry[0])))


def _listed(store: Any, selector: Any) -> list[Any] | None:
    try:
        return list(store.get_file_info(selector))
    except FileNotFoundError:
        return None


class _Folder:
    """A folder on the way down, and the listings of its next subfolders."""

    def __init__(self, path: str, entries: Entries) -> None:
        self.path, self.entries = path, entries
        self.ahead: deque[Future[Entries]] = deque()
        self._folders = iter([name for name, is_folder in entries if is_folder and name])

    def look_ahead(self, pool: ThreadPoolExecutor, listed: Callable[[str], Entries]) -> None:
        """Have up to `AHEAD` subfolders listed."""
        while len(self.ahead) < AHEAD and (name := next(self._folders, None)) is not None:
            self.ahead.append(pool.submit(listed, f"{self.path}{name}/"))


def _is_object(url: str) -> bool:
    """Whether there is an object at `url` itself, and not only below it."""
    from pyarrow.fs import FileType

    store, path = stores.open_store(url)
    try:
        return bool(store.get_file_info(path).type == FileType.File)
    except Exception as error:
        raise refused(f"look at {url}", error) from error
