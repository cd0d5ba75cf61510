"""A checksum of a whole Parquet file, inside the file.

The problem: Parquet's page checksums do not cover the page headers and the footer.

The mechanism: we write a digest of the whole file between the last page and the footer. No reader looks there: the
offsets in the footer point to what comes before, and readers find the footer from the end of the file (Parquet format,
"File format"). The digest is the SHA-256 of the CRC-32 of every mebibyte. Against accidental damage this is as good as
the SHA-256 of the bytes, at a third of the cost or less. It does not protect against deliberate changes.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path
from typing import BinaryIO

_MARK = b"clipbatch-crcsha"
_CHECKSUM_BYTES = len(_MARK) + hashlib.sha256().digest_size
_TAIL_BYTES = 8  # the length of the footer and `PAR1`
_BLOCK_BYTES = 2**20


class _Digest:
    """The digest of bytes that arrive in pieces of any size."""

    def __init__(self) -> None:
        self._outer = hashlib.sha256()
        self._crc = self._filled = 0

    def update(self, data: memoryview) -> None:
        while len(data):
            piece = data[: _BLOCK_BYTES - self._filled]
            self._crc = zlib.crc32(piece, self._crc)
            self._filled += len(piece)
            if self._filled == _BLOCK_BYTES:
                self._end_block()
            data = data[len(piece) :]

    def _end_block(self) -> None:
        self._outer.update(self._crc.to_bytes(4, "little"))
        self._crc = self._filled = 0

    def finish(self) -> bytes:
        """The mark and the digest. Do not call `update` afterwards."""
        self._end_block()
        return _MARK + self._outer.digest()


class ChecksumWriter:
    """A file object to write Parquet into. After the pages call `hold`, write the footer, then call `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, _Digest()
        self._held: io.BytesIO | None = None
        self._written = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._written += len(data)
        if self._held is not None:
            return self._held.write(data)
        self._digest.update(memoryview(data))
        self._file.write(data)
        return len(data)

    def tell(self) -> int:
        """Position of the next byte, not counting the checksum."""
        return self._written

    def hold(self) -> None:
        """Keep what is written from now on in memory, since the checksum goes before the footer."""
        self._held = io.BytesIO()

    def finish(self) -> None:
        """Write the checksum and the footer."""
        assert self._held is not None
        held = self._held.getbuffer()
        footer = int.from_bytes(held[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
        self._digest.update(held)
        for piece in (held[:-footer], self._digest.finish(), held[-footer:]):
            self._file.write(piece)

    def flush(self) -> None:
        """Does nothing: we buffer nothing here, and `publish` syncs the file."""

    def close(self) -> None:
        """Does nothing: `publish` closes the file."""


def verify_file(file: bytes) -> bool:
    """Whether the bytes of a file are those that `ChecksumWriter` wrote."""
    return _verify(io.BytesIO(file))


def verify_path(path: Path) -> bool:
    """As `verify_file`, for a local file, of which it reads a mebibyte at a time. Raises: OSError."""
    with open(path, "rb") as file:
        return _verify(file)


def _verify(file: BinaryIO) -> bool:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    footer = int.from_bytes(file.read(4), "little") + _TAIL_BYTES
    at = size - footer - _CHECKSUM_BYTES
    if at <= 0:
        return False
    whole = _Digest()
    file.seek(0)
    _update(whole, file, at)
    checksum = file.read(_CHECKSUM_BYTES)
    _update(whole, file, footer)
    return checksum == whole.finish()


def _update(whole: _Digest, file: BinaryIO, size: int) -> None:
    """Take in the next `size` bytes of a file, or what it has of them."""
    while size and (piece := file.read(min(size, _BLOCK_BYTES))):
        whole.update(memoryview(piece))
        size -= len(piece)


def digest(*pieces: bytes | memoryview) -> bytes:
    """The checksum of a file that consists of these pieces."""
    whole = _Digest()
    for piece in pieces:
        whole.update(memoryview(piece))
    return whole.finish()
