"""Captions in files beside the images of a folder: `a/001.txt` or `a/001.json` for `a/001.jpg`.

A sidecar has the name of its image but for the suffix, which is the column of `--caption-column`. They are read when
the run is planned, by many threads, since what is frozen is what is compared. That is one small read an image. Archives
have their sidecars inside (`archive_members`), where other rules hold.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import urlsplit

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.lister import file_rows
from clipbatch.inputs.opening import store_error
from clipbatch.storage.failures import RemoteError
from clipbatch.storage.ranges import open_container
from clipbatch.storage.stores import is_web
from clipbatch.storage.uris import is_text, is_url

# The largest sidecar, in bytes.
MAX_BYTES = 2**20
# Text of sidecars in one batch of rows, in characters. A batch has at least one row.
MAX_BATCH_CHARACTERS = 64 * 2**20
_THREADS, _REMOTE_THREADS = 16, 64
# Sidecars that are read before those ahead of them are in a batch.
_MAX_AHEAD = 512
# There is no such file, nor can there be one with so long a name.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
# Nobody may read it, its link leads in a circle, or it is a socket or a device. All else is a fault of the machine.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.ENODEV)

# The text of a sidecar, or None and the reason in words.
_Read = tuple[str | None, str]


class CaptionFiles:
    """The sidecars of an input's images, if `settings` name a caption column."""

    def __init__(self, settings: SourceSettings) -> None:
        """Raises: InputError for a suffix that is not UTF-8."""
        self.column = settings.caption_file
        # Images, and sidecars whose text was read, each once even if two images share it.
        self.images = self.files = 0
        self._last_files: set[str] = set()
        if self.column is not None and not is_text(self.column):
            raise InputError(f"--caption-column {self.column!r} is not UTF-8: name a suffix of files, such as txt")

    def fields(self) -> list[pa.Field]:
        """The column that the sidecars become; none if they are not asked for."""
        return [] if self.column is None else [pa.field(self.column, pa.string())]

    def is_one(self, name: str) -> bool:
        """Whether a file of this name is a sidecar, and no image, whatever files are asked for."""
        return self.column is not None and name.endswith(f".{self.column}")

    def batches(self, names: list[str], root: str, notes: Counter[str]) -> Iterator[pa.RecordBatch]:
        """`file_rows` of the images `names`, with the texts of their sidecars in a column.

        A batch has no more text than `MAX_BATCH_CHARACTERS`. names: paths or urls. notes: gets what cannot be read.
        Raises: InputError if a store or a file system fails.
        """
        if self.column is None:
            yield file_rows(names, root)
            return
        texts: list[str | None] = []
        paths = [self._path(name) for name in names]
        files, first, size = set[str](), 0, 0
        for path, (text, reason) in zip(paths, _read_ahead(paths), strict=True):
            if text is None:
                notes[f"(images without .{self.column})" if reason == "missing" else f"(.{self.column} {reason})"] += 1
            else:
                files.add(path)
                if texts and size + len(text) > MAX_BATCH_CHARACTERS:
                    yield self._batch(names[first : first + len(texts)], root, texts)
                    first, texts, size = first + len(texts), [], 0
                size += len(text)
            texts.append(text)
        self.images += len(names)
        self.files += len(files - self._last_files)
        self._last_files = files
        yield self._batch(names[first:], root, texts)

    def discount(self, passed_over: Counter[str]) -> None:
        """Take the sidecars that were read out of the files that were passed over."""
        suffix = f".{self.column}".lower()
        if self.column is not None and suffix in passed_over:
            passed_over[suffix] = max(0, passed_over[suffix] - self.files)
            if not passed_over[suffix]:
                del passed_over[suffix]

    def _path(self, name: str) -> str:
        if is_url(name) and is_web(name):  # what follows the path stays
            parts = urlsplit(name)
            return parts._replace(path=f"{os.path.splitext(parts.path)[0]}.{self.column}").geturl()
        return f"{os.path.splitext(name)[0]}.{self.column}"

    def _batch(self, names: list[str], root: str, texts: list[str | None]) -> pa.RecordBatch:
        return file_rows(names, root, [(self.fields()[0], pa.array(texts, pa.string()))])


def check(captions: Sequence[CaptionFiles], places: str, limit: int | None) -> None:
    """Whether any image of a run's inputs has a sidecar, after all were read. places: the inputs, for the message.
    limit: how many images the run may have.

    Raises: InputError if none has one.
    """
    images, column = sum(each.images for each in captions), next((each.column for each in captions), None)
    if column is not None and images and not any(each.files for each in captions):
        first, remedy = ("", "") if limit is None or images < limit else ("first ", "raise --limit, ")
        raise InputError(
            f"none of the {first}{images} images of {places} has a file .{column} beside it, which --caption-column "
            f"names: {remedy}name the suffix of such files, as in txt or json:FIELD, or give a table"
        )


def text_of(content: bytes | bytearray) -> str | None:
    """The text of a caption's file; None if it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_ahead(paths: list[str]) -> Iterator[_Read]:
    """What is in the sidecars `paths`, in their order. Threads read up to `_MAX_AHEAD` of them ahead."""
    threads = _REMOTE_THREADS if paths and is_url(paths[0]) else _THREADS
    at_once = _MAX_AHEAD // (2 * threads)
    waiting: deque[Future[list[_Read]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sidecars")
    try:
        for at in range(0, len(paths), at_once):
            waiting.append(pool.submit(_read_all, paths[at : at + at_once]))
            if len(waiting) == 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_all(paths: list[str]) -> list[_Read]:
    return [_remote(path) if is_url(path) else _local(path) for path in paths]


def _local(path: str) -> _Read:
    """Raises: InputError if the file system fails."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
        try:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                return None, "unreadable"
            if facts.st_size > MAX_BYTES:
                return None, "too_large"
            content = os.read(file, facts.st_size)
            while len(content) < facts.st_size and (more := os.read(file, facts.st_size - len(content))):
                content += more
            return _of_bytes(content)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in (*_MISSING, *_UNREADABLE):
            return None, "missing" if error.errno in _MISSING else "unreadable"
        raise InputError(
            f"cannot read the caption {path}: {error.strerror}; check the file system, and how many files a process "
            "may open (ulimit -n), then run the same command again"
        ) from error


def _remote(url: str) -> _Read:
    try:
        file = open_container(url)
        return (None, "too_large") if file.size > MAX_BYTES else _of_bytes(file.read_at(0, file.size))
    except FileNotFoundError:
        return None, "missing"
    except RemoteError as error:
        if error.status == "missing":
            return None, "missing"
        raise store_error(f"read {url}", error) from error
    except (OSError, ValueError) as error:
        raise store_error(f"read {url}", error) from error


def _of_bytes(content: bytes | bytearray) -> _Read:
    text = text_of(content)
    return text, "" if text is not None else "not UTF-8"
