"""Open an input file that may be compressed, and say which one it was. Knows nothing of what is in it."""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from clipbatch.errors import InputError
from clipbatch.storage import stores
from clipbatch.storage.hosts import patiently
from clipbatch.storage.ranges import open_ranged
from clipbatch.storage.uris import is_url, name_of

# Read at a time from a file of text.
CHUNK_BYTES = 4 * 2**20
MAX_LINE_BYTES = 2**28
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def suffix_of(name: str) -> str:
    """The suffix of `name` in lower case, with `.gz` and `.zst` left aside: `.csv` for `LIST.CSV.gz`."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if last in _CODECS else last


def is_compressed(name: str) -> bool:
    """Whether `name` ends in `.gz` or `.zst`."""
    return os.path.splitext(name.lower())[1] in _CODECS


def open_input(path: str) -> pa.NativeFile:
    """The file at `path` to be read from its beginning, decompressed. Raises: InputError where it cannot be opened."""
    try:
        file = pa.OSFile(os.fsencode(path))
    except OSError as error:
        raise unreadable(path, error) from error
    return decompressed(file, path)


def decompressed(file: Any, name: str) -> Any:
    """`file`, or a stream of what it holds where `name` says that it is compressed."""
    codec = _CODECS.get(os.path.splitext(name.lower())[1])
    return pa.CompressedInputStream(file, codec) if codec else file


def whole_lines(file: Any, path: str) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, some whole lines), until the end of `file`, which is at its beginning. Without the
    last newline, and without a mark of byte order.

    Raises: InputError where it cannot be read, and for a line of more than `MAX_LINE_BYTES`.
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
    """The refusal for a file that cannot be read, or not to its end."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"cannot read {path}: {reason}; check that it is whole and readable")


def size_and_end(path: str, length: int) -> tuple[int, bytes]:
    """The size of the file at `path`, a path or url, and its last `length` bytes: where Parquet and Arrow files tell
    what they hold. Raises: InputError."""
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
    except Exception as error:  # what fsspec's file systems raise is of any kind
        raise unreadable(path, error) from error


def copied(url: str) -> BinaryIO:
    """The manifest at `url` as a temporary file: it is read twice, for the run's identity and for its rows.

    Raises: InputError where it cannot be had or kept.
    """
    return _copied(url, tempfile.TemporaryFile)


def copied_into(folder: str, url: str) -> str:
    """The path of a copy of the manifest at `url`, under its own name in `folder`. Raises: as `copied`."""
    path = os.path.join(folder, name_of(url))

    def make() -> BinaryIO:
        return open(path, "w+b")

    _copied(url, make).close()
    return path


def _copied(url: str, make: Callable[[], BinaryIO]) -> BinaryIO:
    def once() -> BinaryIO:
        spool = make()
        try:
            for chunk in stores.chunks(url):
                _keep(chunk, spool, url)
        except BaseException:
            spool.close()
            raise
        return spool

    try:
        return patiently(once, url)
    except (OSError, ValueError) as error:
        raise refused(f"read the manifest {url}", error) from error


def _keep(chunk: bytes, spool: BinaryIO, url: str) -> None:
    try:
        spool.write(chunk)
        spool.flush()
    except OSError as error:
        raise InputError(
            f"cannot keep a copy of the manifest {url} in {tempfile.gettempdir()}: {error.strerror}; free some space "
            "there, or set TMPDIR"
        ) from error


def refused(what: str, error: Exception) -> InputError:
    """The refusal where a store did not let us do `what`."""
    reason = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"cannot {what}: {reason}; check the name, the credentials, and that the network is there")
