"""A digest inside a Parquet file, over all of it: page checksums leave the footer unprotected.

It stands between the last page and the footer, where no reader looks: offsets in the footer point before it, and the
footer is found from the end of the file (Parquet format, "File format").
"""

from __future__ import annotations

import hashlib

_MARK = b"clipbatch-sha256"
_SEAL_BYTES = len(_MARK) + hashlib.sha256().digest_size
_TAIL_BYTES = 8  # length of the footer, and PAR1


def seal(data: memoryview) -> tuple[memoryview, bytes, memoryview]:
    """A Parquet file's pages, the seal to write after them, and the rest of the file to write after that."""
    pages, rest = _split(data)
    return pages, _MARK + _digest(pages, rest), rest


def is_whole(file: bytes) -> bool:
    """Whether a file's bytes are those that `seal` made."""
    data = memoryview(file)
    if len(data) < _TAIL_BYTES:
        return False
    before, rest = _split(data)
    at = len(before) - _SEAL_BYTES
    return at > 0 and before[at:] == _MARK + _digest(before[:at], rest)


def _split(data: memoryview) -> tuple[memoryview, memoryview]:
    footer = int.from_bytes(data[-_TAIL_BYTES:-4], "little")
    at = max(0, len(data) - _TAIL_BYTES - footer)
    return data[:at], data[at:]


def _digest(pages: memoryview, rest: memoryview) -> bytes:
    digest = hashlib.sha256(pages)
    digest.update(rest)
    return digest.digest()
