"""The members of a zip archive whose directory, which is its end, is cut off or damaged: from their own headers.

What the directory alone tells is lost: that a member is a link, or was deleted. A member that was streamed has its size
behind its data, in a descriptor, which is looked for by its signature; a member whose descriptor has none, as some old
programs write it, counts as cut off.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator

from clipbatch.container import Container

CUT = "cut:the archive ends before this member does"
"""Method of a member of which nobody knows how long it would be."""
_HEADER = struct.Struct("<4sBxHH4xIIIHH")
"""Signature, version needed, flags, method, CRC, both sizes, length of name and of extra field."""
_SIGNATURE = b"PK\3\4"
_DESCRIPTOR = b"PK\7\x08"
_DIRECTORY = (b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\x07", b"PK\6\x08")
"""What comes behind the last member."""
_STREAMED = 0x8
_UTF8 = 0x800
_NEWEST = 63
"""Version of the format, times ten, that a reader may need; a higher one is no header."""
_IN_EXTRA = 0xFFFFFFFF
_LONG = 1
"""Part of the extra field that holds sizes of 64 bits; with it, a descriptor has them too."""
_CHUNK_BYTES = 2**20


def scan(file: Container, note: Callable[[str], None]) -> Iterator[tuple[zipfile.ZipInfo, bool]]:
    """Every member in the order of the file, and whether its size is known. The last may reach beyond the file's end.

    note: told what is wrong with the archive as a whole, in words that follow its name. Yields nothing where the file
    does not begin with a member. Raises: OSError.
    """
    at, damaged = 0, False
    while len(header := file.read_at(at, _HEADER.size)) == _HEADER.size:
        if header[:4] in _DIRECTORY and at:
            return note("has no whole directory, so its members were looked for")
        entry, end = _entry(file, at, header) if header[:4] == _SIGNATURE else (None, at)
        if entry is None:
            if at == 0:
                return
            if not damaged:
                note(f"is damaged at byte {at}")
            damaged, at = True, _next(file, at + 1, _SIGNATURE)
            continue
        damaged = False
        yield entry, end >= 0
        at = end if end >= 0 else _next(file, at + 1, _SIGNATURE)
    if at:
        note("ends early")


def _entry(file: Container, at: int, header: bytearray) -> tuple[zipfile.ZipInfo | None, int]:
    """The member whose header is at `at`, and where the next one is: -1 where no descriptor says how long it is. None
    where that is no header, or the file ends within it."""
    _, version, flags, method, crc, packed, size, name_length, extra_length = _HEADER.unpack(header)
    more = bytes(file.read_at(at + _HEADER.size, name_length + extra_length))
    if version > _NEWEST or not 0 < name_length <= len(more) - extra_length:
        return None, at
    first = at + _HEADER.size + len(more)
    if flags & _STREAMED and packed in (0, _IN_EXTRA):
        found = _described(file, first, struct.Struct("<4xIQ8x" if _LONG in _kinds(more[name_length:]) else "<4xII4x"))
        crc, packed, end = found or (0, 0, -1)
    else:
        packed = _long_size(more[name_length:], size) if packed == _IN_EXTRA else packed
        end = first + packed
        if flags & _STREAMED:
            end += 16 if file.read_at(end, 4) == _DESCRIPTOR else 12
    entry = zipfile.ZipInfo(more[:name_length].decode("utf-8" if flags & _UTF8 else "cp437", "replace"))
    entry.flag_bits, entry.compress_type, entry.CRC = flags, method, crc
    entry.compress_size, entry.header_offset, entry.create_system = packed, at, 0
    return entry, end


def _described(file: Container, first: int, descriptor: struct.Struct) -> tuple[int, int, int] | None:
    """CRC and size of data that begins at `first`, from the descriptor behind it, and where that ends."""
    at = first
    while (at := _next(file, at, _DESCRIPTOR)) < file.size:
        found = file.read_at(at, descriptor.size)
        if len(found) == descriptor.size:
            crc, packed = descriptor.unpack(found)
            if packed == at - first:
                return crc, packed, at + descriptor.size
        at += 1
    return None


def _kinds(extra: bytes) -> dict[int, bytes]:
    """The parts of an extra field."""
    found, at = {}, 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        found[kind] = extra[at + 4 : at + 4 + length]
        at += 4 + length
    return found


def _long_size(extra: bytes, size: int) -> int:
    """The packed size from the extra field's 64 bits, where it comes behind the other size if that is there too."""
    sizes = _kinds(extra).get(_LONG, b"")[8 if size == _IN_EXTRA else 0 :]
    return int.from_bytes(sizes[:8], "little") if len(sizes) >= 8 else _IN_EXTRA


def _next(file: Container, at: int, signature: bytes) -> int:
    """Where `signature` is next, from `at` on; the file's size where it is not."""
    while at < file.size:
        chunk = file.read_at(at, _CHUNK_BYTES)
        found = chunk.find(signature)
        if found >= 0:
            return at + found
        if len(chunk) < len(signature):
            break
        at += len(chunk) - len(signature) + 1
    return file.size
