"""A digest inside a Parquet file, over all of it: page checksums leave page headers and the footer unprotected.

It stands between the last page and the footer, where no reader looks: offsets in the footer point before it, and the
footer is found from the end of the file (Parquet format, "File format"). It is the SHA-256 of the CRC-32 of every
mebibyte: against chance, not against malice, it is as good as SHA-256 of the bytes, and costs a third of it or less.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import BinaryIO

_MARK = b"clipbatch-crcsha"
_SEAL_BYTES = len(_MARK) + hashlib.sha256().digest_size
_TAIL_BYTES = 8  # length of the footer, and PAR1
_BLOCK_BYTES = 2**20


class _Digest:
    """Of bytes that come in pieces, wherever these are cut."""

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

    def seal(self) -> bytes:
        """The mark and the digest; nothing may be added afterwards."""
        self._end_block()
        return _MARK + self._outer.digest()


class ChecksumWriter:
    """A file to write Parquet into. After the pages call `hold`, write the footer, then call `finish`."""

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
        """Where the next byte stands in the file without its seal."""
        return self._written

    def hold(self) -> None:
        """Keep what comes now in memory, since the seal goes before the footer."""
        self._held = io.BytesIO()

    def finish(self) -> None:
        """Write the seal and the footer."""
        assert self._held is not None
        held = self._held.getbuffer()
        footer = int.from_bytes(held[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
        self._digest.update(held)
        for piece in (held[:-footer], self._digest.seal(), held[-footer:]):
            self._file.write(piece)

    def flush(self) -> None:
        """Nothing is buffered here; `publish` brings the file to the disk."""

    def close(self) -> None:
        """The file stays open: `publish` closes it."""


def verify_file(file: bytes) -> bool:
    """Whether a file's bytes are those that `ChecksumWriter` wrote."""
    data = memoryview(file)
    footer = int.from_bytes(data[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
    at = len(data) - footer - _SEAL_BYTES
    return at > 0 and data[at:-footer] == digest(data[:at], data[-footer:])


def digest(*pieces: bytes | memoryview) -> bytes:
    """The seal of a file that is these pieces one after the other."""
    made = _Digest()
    for piece in pieces:
        made.update(memoryview(piece))
    return made.seal()
