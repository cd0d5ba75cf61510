"""Read a member of a tar or zip archive by its span.

A span is made when the archive is listed. It is used later, maybe on another day and another machine, when the archive
may have changed. So it contains a checksum, and a member that is not the listed one becomes a Reject and never another
image. Names of members are data: no file is opened or looked up by one.

`Span.method` of a member is one of

    tar:CRC            [start, start + length) is the data; CRC-32 of the header block, the 512 bytes before it
    zip-stored:CRC     start is the member's local header, length that of its data in the file; CRC-32 of the data
    zip-deflate:CRC    the same; CRC-32 of the inflated data
    refused:REASON     the member cannot be read, and why
    cut:REASON         the archive ends inside of the member, and nobody knows how much is missing
"""

from __future__ import annotations

import struct
import zlib

from clipbatch.storage.files import Container
from clipbatch.types import Encoded, Reject, Span

TAR_BLOCK = 512
# A zip's local header: its signature, and the lengths of the name and the extra field, which stand before the data.
_ZIP_LOCAL = struct.Struct("<4s22xHH")
# Bytes read beyond a zip member's size, for its name and extra field. If these are longer, a second read follows.
_ZIP_SLACK = 512
_CHANGED = "the archive was changed after it was listed, or is damaged: {} is not where it was; start a new run"


def read_member(container: Container, span: Span, max_bytes: int) -> Encoded | Reject:
    """The bytes of the member at `span`, or why they cannot be read. max_bytes: limit on its size. Raises: OSError."""
    kind, _, check = span.method.partition(":")
    if kind == "refused":
        return Reject(status="unsupported", error=check)
    if kind == "cut":
        return Reject(status="truncated", error=check)
    if span.length == 0:
        return Reject(status="empty", error="0 bytes")
    if span.length > max_bytes:
        return Reject(status="too_large", error=f"{span.length} bytes, over the limit of {max_bytes}")
    if span.start < 0:
        return Reject(status="corrupt", error=_CHANGED.format("a member"))
    if kind == "tar":
        return _tar_member(container, span, check)
    if kind in ("zip-stored", "zip-deflate"):
        return _zip_member(container, span, check, kind == "zip-deflate", max_bytes)
    raise ValueError(f"no archive's method: {span.method!r}")


def crc(data: bytes | bytearray) -> str:
    """CRC-32 of `data` as it is written in spans."""
    return f"{zlib.crc32(data):08x}"


def _tar_member(container: Container, span: Span, check: str) -> Encoded | Reject:
    data = container.read_at(span.start - TAR_BLOCK, TAR_BLOCK + span.length)
    if crc(data[:TAR_BLOCK]) != check:
        return Reject(status="corrupt", error=_CHANGED.format("the member's header"))
    del data[:TAR_BLOCK]
    return _whole(data, span.length)


def _zip_member(container: Container, span: Span, check: str, deflated: bool, max_bytes: int) -> Encoded | Reject:
    data = container.read_at(span.start, _ZIP_LOCAL.size + span.length + _ZIP_SLACK)
    if len(data) < _ZIP_LOCAL.size or data[:4] != b"PK\3\4":
        return Reject(status="corrupt", error=_CHANGED.format("the member's header"))
    _, name, extra = _ZIP_LOCAL.unpack_from(data)
    first = _ZIP_LOCAL.size + name + extra
    if name + extra > _ZIP_SLACK:
        data = container.read_at(span.start + first, span.length)
    else:
        del data[:first]
        del data[span.length :]
    if isinstance(whole := _whole(data, span.length), Reject):
        return whole
    if deflated:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = bytearray(inflater.decompress(data, max_bytes + 1))
        except zlib.error as error:
            return Reject(status="corrupt", error=f"deflated data of the archive is damaged: {error}")
        if len(data) > max_bytes:
            return Reject(status="too_large", error=f"more than the limit of {max_bytes} bytes when inflated")
        if not inflater.eof:
            return Reject(status="truncated", error="deflated data of the archive ends early")
    if crc(data) != check:
        return Reject(status="corrupt", error="the archive is damaged here, or was changed after it was listed: CRC-32")
    return Encoded(data=data) if data else Reject(status="empty", error="0 bytes")


def _whole(data: bytearray, length: int) -> Encoded | Reject:
    if len(data) < length:
        return Reject(status="truncated", error=f"the archive ends here, after {len(data)} of {length} bytes")
    return Encoded(data=data)
