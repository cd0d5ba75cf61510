"""List the members of a zip archive.

`zipfile` reads the directory at the end of the archive and keeps it in memory, 0.7 KB per member. The headers of the
members themselves are checked when the members are read.

If the directory is cut off or damaged, we find the members by their own headers, from front to back. What only the
directory knows is lost then: that a member is a link, or was deleted. A member that was written to a stream has its
size in a descriptor after its data. We look for that by its signature. Some old programs write descriptors without one;
such a member counts as cut off.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clipbatch.inputs.archive_members import MAX_BYTES, Member, unreadable_member
from clipbatch.storage.files import Container

# Method of a member whose length is unknown.
CUT = "cut:the archive ends before this member does"
# Signature, version needed, flags, method, CRC, both sizes, length of name and of extra field.
_HEADER = struct.Struct("<4sBxHH4xIIIHH")
_SIGNATURE = b"PK\3\4"
_DESCRIPTOR = b"PK\7\x08"
# Signatures of what follows the last member.
_DIRECTORY = (b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\x07", b"PK\6\x08")
_STREAMED = 0x8
# The newest version of the format, times ten. A header with a higher one is damaged.
_NEWEST = 63
_IN_EXTRA = 0xFFFFFFFF
# Kind of the extra field with 64-bit sizes. If it is present, the descriptor has 64-bit sizes too.
_ZIP64 = 1
_CHUNK_BYTES = 2**20
# Flags: encrypted; strongly encrypted; directory encrypted.
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_PATCHED = 0x20
_UTF8 = 0x800
_METHODS = {zipfile.ZIP_STORED: "zip-stored", zipfile.ZIP_DEFLATED: "zip-deflate"}
# What `zipfile` raises for a directory that it cannot read.
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OverflowError)


class NoZipError(Exception):
    """The file has neither a readable zip directory nor a member at its beginning. The message says why."""


def zip_members(file: Container, forwards: Container, note: Callable[[str], None]) -> Iterator[Member]:
    """All members except folders, in the order of the directory. Without a directory, in the order of the file.

    forwards: the same file, for reading from front to back. note: called with what is wrong with the archive as a
    whole, in words to put after its name. Raises: NoZipError if this is not a zip; OSError.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Readable(file))) as archive:
            entries = archive.infolist()
    except _UNREADABLE as error:
        recovered = scan(forwards, note)
        first = next(recovered, None)
        if first is None:
            raise NoZipError(str(error)) from error
        return _recovered_members(itertools.chain([first], recovered))
    return map(_member, (entry for entry in entries if not entry.is_dir()))


def _recovered_members(entries: Iterable[tuple[zipfile.ZipInfo, bool]]) -> Iterator[Member]:
    for entry, size_known in entries:
        if not entry.is_dir():
            member = _member(entry)
            yield Member(member.name, 0, 1, CUT) if member.is_file and not size_known else member


def _member(entry: zipfile.ZipInfo) -> Member:
    name = _name(entry)
    mode = entry.external_attr >> 16
    if entry.flag_bits & _ENCRYPTED:
        return unreadable_member(name, "encrypted; unpack it with its password")
    if entry.create_system == 3 and stat.S_ISLNK(mode):  # 3: Unix
        return unreadable_member(name, "a symbolic link inside of the archive, which holds no image")
    if entry.compress_type not in _METHODS or entry.flag_bits & _PATCHED:
        return unreadable_member(name, f"compressed by method {entry.compress_type}; pack it stored or deflated")
    start, length = max(-1, min(entry.header_offset, MAX_BYTES)), min(entry.compress_size, MAX_BYTES)
    return Member(name, start, length, f"{_METHODS[entry.compress_type]}:{entry.CRC:08x}")


def _name(entry: zipfile.ZipInfo) -> str:
    """The member's name. `zip` on Linux writes UTF-8 without the flag for it, so `zipfile` decodes it as cp437."""
    if entry.flag_bits & _UTF8 or entry.filename.isascii():
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


def scan(file: Container, note: Callable[[str], None]) -> Iterator[tuple[zipfile.ZipInfo, bool]]:
    """All members in the order of the file, and whether the size of each is known. Yields nothing if this is not a zip.

    In a truncated archive, the last member may extend beyond the end. note: as in `zip_members`. Raises: OSError.
    """
    at, damaged = 0, False
    while len(header := file.read_at(at, _HEADER.size)) == _HEADER.size:
        if header[:4] in _DIRECTORY and at:
            return note("has no whole directory, so its members were looked for")
        entry, end = _parse_header(file, at, header) if header[:4] == _SIGNATURE else (None, at)
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


def _parse_header(file: Container, at: int, header: bytearray) -> tuple[zipfile.ZipInfo | None, int]:
    """The member with the header at `at`, and where the next one is, or -1 if no descriptor gives the size.

    None if this is not a valid header, or the file ends within it.
    """
    _, version, flags, method, crc, packed, size, name_length, extra_length = _HEADER.unpack(header)
    more = bytes(file.read_at(at + _HEADER.size, name_length + extra_length))
    if version > _NEWEST or not 0 < name_length <= len(more) - extra_length:
        return None, at
    first = at + _HEADER.size + len(more)
    if flags & _STREAMED and packed in (0, _IN_EXTRA):
        layout = "<4xIQ8x" if _ZIP64 in _extra_fields(more[name_length:]) else "<4xII4x"
        crc, packed, end = _find_descriptor(file, first, struct.Struct(layout)) or (0, 0, -1)
    else:
        packed = _zip64_size(more[name_length:], size) if packed == _IN_EXTRA else packed
        end = first + packed
        if flags & _STREAMED:
            end += 16 if file.read_at(end, 4) == _DESCRIPTOR else 12
    entry = zipfile.ZipInfo(more[:name_length].decode("utf-8" if flags & _UTF8 else "cp437", "replace"))
    entry.flag_bits, entry.compress_type, entry.CRC = flags, method, crc
    entry.compress_size, entry.header_offset, entry.create_system = packed, at, 0
    return entry, end


def _find_descriptor(file: Container, first: int, descriptor: struct.Struct) -> tuple[int, int, int] | None:
    """Find the descriptor after the data that starts at `first`. Returns CRC, size and the end of the descriptor."""
    at = first
    while (at := _next(file, at, _DESCRIPTOR)) < file.size:
        data = file.read_at(at, descriptor.size)
        if len(data) == descriptor.size:
            crc, packed = descriptor.unpack(data)
            if packed == at - first:
                return crc, packed, at + descriptor.size
        at += 1
    return None


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """The extra fields of a header, by kind."""
    fields, at = {}, 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        fields[kind] = extra[at + 4 : at + 4 + length]
        at += 4 + length
    return fields


def _zip64_size(extra: bytes, size: int) -> int:
    """The compressed size in 64 bits. It follows the uncompressed size, if that is in the extra field as well."""
    sizes = _extra_fields(extra).get(_ZIP64, b"")[8 if size == _IN_EXTRA else 0 :]
    return int.from_bytes(sizes[:8], "little") if len(sizes) >= 8 else _IN_EXTRA


def _next(file: Container, at: int, signature: bytes) -> int:
    """Where the next `signature` is, from `at` on; the size of the file if there is none."""
    while at < file.size:
        chunk = file.read_at(at, _CHUNK_BYTES)
        offset = chunk.find(signature)
        if offset >= 0:
            return at + offset
        if len(chunk) < len(signature):
            break
        at += len(chunk) - len(signature) + 1
    return file.size


class _Readable(io.RawIOBase):
    """A container as a file object for `zipfile`."""

    def __init__(self, container: Container) -> None:
        self._container, self._at = container, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._container.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._container.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
