"""The members of a zip archive whose directory, which is its end, is cut off or damaged: from their own headers.

What the directory alone tells is lost: that a member is a link, or was deleted. A member that was streamed has its size
behind its data, in a descriptor, which is looked for by its signature; a member whose descriptor has none, as some old
programs write it, counts as cut off.

The members of a zip archive, from the directory at its end, which `zipfile` holds in memory: 0.7 KB a member.

What a member's own header says is looked at when it is read, or where the directory is not whole (`zipscan`).
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

from clipbatch.inputs.archive_members import MAX_BYTES, Member, refused
from clipbatch.storage.files import Container

# Method of a member of which nobody knows how long it would be.
CUT = "cut:the archive ends before this member does"
# Signature, version needed, flags, method, CRC, both sizes, length of name and of extra field.
_HEADER = struct.Struct("<4sBxHH4xIIIHH")
_SIGNATURE = b"PK\3\4"
_DESCRIPTOR = b"PK\7\x08"
# What comes behind the last member.
_DIRECTORY = (b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\x07", b"PK\6\x08")
_STREAMED = 0x8
# Version of the format, times ten, that a reader may need; a higher one is no header.
_NEWEST = 63
_IN_EXTRA = 0xFFFFFFFF
# Part of the extra field that holds sizes of 64 bits; with it, a descriptor has them too.
_LONG = 1
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


# Flags: encrypted; strongly; the directory, too.
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_PATCHED = 0x20
_UTF8 = 0x800
_KINDS = {zipfile.ZIP_STORED: "zip-stored", zipfile.ZIP_DEFLATED: "zip-deflate"}
# What `zipfile` raises for a directory that it cannot make sense of.
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OverflowError)


class NoZipError(Exception):
    """The file has neither a zip directory that can be read nor a member at its beginning; the message says why."""


def zip_members(file: Container, forwards: Container, note: Callable[[str], None]) -> Iterator[Member]:
    """Every member but folders, in the directory's order; without one, in the file's, those before the cut.

    forwards: the same file, for reading from front to back. note: told what is wrong with the archive as a whole, in
    words that follow its name. Raises: NoZipError before the first; OSError.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Readable(file))) as archive:
            found = archive.infolist()
    except _UNREADABLE as error:
        saved = scan(forwards, note)
        first = next(saved, None)
        if first is None:
            raise NoZipError(str(error)) from error
        return _saved(itertools.chain([first], saved))
    return map(_member, (entry for entry in found if not entry.is_dir()))


def _saved(found: Iterable[tuple[zipfile.ZipInfo, bool]]) -> Iterator[Member]:
    for entry, whole in found:
        if not entry.is_dir():
            member = _member(entry)
            yield Member(member.name, 0, 1, CUT) if member.is_file and not whole else member


def _member(entry: zipfile.ZipInfo) -> Member:
    name = _name(entry)
    mode = entry.external_attr >> 16
    if entry.flag_bits & _ENCRYPTED:
        return refused(name, "encrypted; unpack it with its password")
    if entry.create_system == 3 and stat.S_ISLNK(mode):  # 3: made on a Unix
        return refused(name, "a symbolic link inside of the archive, which holds no image")
    if entry.compress_type not in _KINDS or entry.flag_bits & _PATCHED:
        return refused(name, f"compressed by method {entry.compress_type}; pack it stored or deflated")
    start, length = max(-1, min(entry.header_offset, MAX_BYTES)), min(entry.compress_size, MAX_BYTES)
    return Member(name, start, length, f"{_KINDS[entry.compress_type]}:{entry.CRC:08x}")


def _name(entry: zipfile.ZipInfo) -> str:
    """The member's name; `zip` on Linux writes UTF-8 without the flag that says so, which `zipfile` takes for cp437."""
    if entry.flag_bits & _UTF8 or entry.filename.isascii():
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


class _Readable(io.RawIOBase):
    """A container as the kind of file that `zipfile` reads."""

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
