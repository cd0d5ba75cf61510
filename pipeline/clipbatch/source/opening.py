"""Open an input file that may be compressed, and say which one it was. Knows nothing of what is in it."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pyarrow as pa

from clipbatch.errors import InputError

_TAIL_BYTES = 2**20
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


def unreadable(path: str, error: Exception) -> InputError:
    """The refusal for a file that cannot be read, or not to its end."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return InputError(f"cannot read {path}: {reason}; check that it is whole and readable")


def file_sha256(path: str) -> str:
    """sha256 of the bytes of the file at `path`. Raises: InputError where they cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            digest, chunk = hashlib.sha256(), memoryview(bytearray(2**22))
            while count := file.readinto(chunk):
                digest.update(chunk[:count])
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def tail_sha256(path: str) -> str:
    """sha256 of the last MiB of the file at `path`, which is where a Parquet or Arrow file tells what it holds."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
