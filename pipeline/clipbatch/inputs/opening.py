"""Open input files, which may be compressed or remote. Errors name the file."""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from clipbatch.errors import InputError
from clipbatch.storage import stores
from clipbatch.storage.ranges import open_ranged
from clipbatch.storage.retries import patiently
from clipbatch.storage.uris import is_url, name_of

# How much we read at a time from a text file.
CHUNK_BYTES = 4 * 2**20
MAX_LINE_BYTES = 2**28
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def suffix_of(name: str) -> str:
    """The suffix of `name` in lower case, ignoring `.gz` and `.zst`: `.csv` for `LIST.CSV.gz`."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if last in _CODECS else last


def is_compressed(name: str) -> bool:
    """Whether `name` ends in `.gz` or `.zst`."""
    return os.path.splitext(name.lower())[1] in _CODECS


def open_input(path: str) -> pa.NativeFile:
    """Open the local file `path` and decompress it if its name says so. Raises: InputError if it cannot be opened."""
    try:
        file = pa.OSFile(os.fsencode(path))
    except OSError as error:
        raise unreadable(path, error) from error
    return decompressed(file, path)


def decompressed(file: Any, name: str) -> Any:
    """`file`, or a stream of its decompressed content if `name` ends in `.gz` or `.zst`."""
    codec = _CODECS.get(os.path.splitext(name.lower())[1])
    return pa.CompressedInputStream(file, codec) if codec else file


def whole_lines(file: Any, path: str) -> Iterator[tuple[int, bytes]]:
    """Read `file` from its beginning to its end, some MiB of whole lines at a time.

    Yields the number of the first line, and the lines without the last newline and without a byte order mark.
    Raises: InputError if the file cannot be read, or a line is longer than `MAX_LINE_BYTES`.
    """
    line, waiting, more = 1, list[bytes](), True
    while more:
        try:
            chunk = file.read(CHUNK_BYTES)
        except OSError as error:
            raise unreadable(path, error) from error
        more = bool(chunk)
        if line == 1 and not waiting:
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
        whole, newline, rest = chunk.rpartition(b"\n") if more else (b"", b"\n", b"")
        if not newline:
            waiting.append(rest)
            if sum(map(len, waiting)) > MAX_LINE_BYTES:
                raise InputError(f"line {line} of {path} is longer than {MAX_LINE_BYTES} bytes: shorten it")
            continue
        lines = b"".join([*waiting, whole])
        if lines:
            yield line, lines
        line += lines.count(b"\n") + 1
        waiting = [rest] if rest else []


def unreadable(path: str, error: Exception) -> InputError:
    """The error for a file that cannot be read completely."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"cannot read {path}: {reason}; check that it is whole and readable")


def size_and_end(path: str, length: int) -> tuple[int, bytes]:
    """Size of the file `path`, a path or url, and its last `length` bytes. Raises: InputError."""
    try:
        if is_url(path):
            with open_ranged(path) as file:
                return (size := file.size()), file.read_at(length, max(0, size - length)) if length else b""
        with open(path, "rb") as local:
            size = os.fstat(local.fileno()).st_size
            local.seek(max(0, size - length))
            return size, local.read(length)
    except InputError:
        raise
    except Exception as error:  # fsspec's file systems raise all kinds of exceptions
        raise unreadable(path, error) from error


def download(url: str) -> BinaryIO:
    """Download the manifest `url` to a temporary file. It is read twice: for the run's identity and for its rows.

    Raises: InputError if the download fails or the disk is full.
    """
    return _download(url, tempfile.TemporaryFile)


def download_into(folder: str, url: str) -> str:
    """Download the manifest `url` into `folder`, under its own name. Returns the path. Raises: as `download`."""
    path = os.path.join(folder, name_of(url))

    def create() -> BinaryIO:
        return open(path, "w+b")

    _download(url, create).close()
    return path


def _download(url: str, create: Callable[[], BinaryIO]) -> BinaryIO:
    def once() -> BinaryIO:
        copy = create()
        try:
            for chunk in stores.chunks(url):
                _write(chunk, copy, url)
        except BaseException:
            copy.close()
            raise
        return copy

    try:
        return patiently(once, url)
    except (OSError, ValueError) as error:
        raise store_error(f"read the manifest {url}", error) from error


def _write(chunk: bytes, copy: BinaryIO, url: str) -> None:
    try:
        copy.write(chunk)
        copy.flush()
    except OSError as error:
        raise InputError(
            f"cannot keep a copy of the manifest {url} in {tempfile.gettempdir()}: {error.strerror}; free some space "
            "there, or set TMPDIR"
        ) from error


def store_error(what: str, error: Exception) -> InputError:
    """The error for a store or server that failed. what: what we tried to do, in words."""
    reason = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"cannot {what}: {reason}; check the name, the credentials and the network")
