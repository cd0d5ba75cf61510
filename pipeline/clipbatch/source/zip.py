"""The members of a zip archive, from the directory at its end, which `zipfile` holds in memory: 0.7 KB a member.

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

from clipbatch.container import Container
from clipbatch.source.members import MOST_BYTES, Member, refused
from clipbatch.source.zipscan import CUT, scan

_ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Flags: encrypted; strongly; the directory, too."""
_PATCHED = 0x20
_UTF8 = 0x800
_KINDS = {zipfile.ZIP_STORED: "zip-stored", zipfile.ZIP_DEFLATED: "zip-deflate"}
_UNREADABLE = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OverflowError)
"""What `zipfile` raises for a directory that it cannot make sense of."""


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
    start, length = max(-1, min(entry.header_offset, MOST_BYTES)), min(entry.compress_size, MOST_BYTES)
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
