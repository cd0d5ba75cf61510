"""List the members of a tar archive (v7, ustar, GNU, PAX) in one pass over its headers, which skips the data.

We do not use Python's tarfile: at a damaged header it stops as if the archive ended there. Here, we continue at the
next block that is a header, and note the damage. Blocks of zeros between concatenated archives are skipped, as with
`tar --ignore-zeros`. We do not look at the data. If some is missing, reading the member shows that later.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from clipbatch.inputs.archive_members import MAX_BYTES, Member, unreadable_member
from clipbatch.storage.archives import TAR_BLOCK, crc
from clipbatch.storage.files import Container

# The largest PAX or GNU extension header, in bytes. A larger one counts as damage.
_MAX_EXTENSION_BYTES = 2**20
_CHUNK_BYTES = 2**20
_NO_DATA = {
    b"1": "a hard link inside of the archive, which holds no data of its own",
    b"2": "a symbolic link inside of the archive, which holds no data",
    b"3": "a device, not a file",
    b"4": "a device, not a file",
    b"6": "a pipe, not a file",
}
_FOLDER = b"5"
# GNU entries that are not members: volume label, part of a file from another volume, names in a folder.
_NO_MEMBER = b"VMDN"
_SPARSE = "a sparse file, whose holes are left out of the archive; pack it without --sparse"


class NoTarError(Exception):
    """The file does not begin with a tar header."""


class _DamagedError(Exception):
    """A block that should be a header is not one."""


def tar_members(file: Container, note: Callable[[str], None]) -> Iterator[Member]:
    """All members except folders, in order. In a truncated archive, the last one may extend beyond the end.

    note: called with what is wrong with the archive as a whole, in words to put after its name.
    Raises: NoTarError if the file does not start with a header; OSError.
    """
    at, ended, extension = 0, False, _Extension()
    while at < file.size:
        block = file.read_at(at, TAR_BLOCK)
        if not any(block):
            at, ended = at + TAR_BLOCK, True
            continue
        ended = False
        if len(block) < TAR_BLOCK and at:
            break
        try:
            kind, size = _kind_and_size(block)
            if kind in b"LKxXg":
                extension.add(kind, _content(file, at, size))
                at = _after(at, size)
                continue
            member, at = _member(file, at, block, kind, extension.size(size), extension)
        except _DamagedError:
            if at == 0:
                raise NoTarError from None
            note(f"is damaged at byte {at}")
            member, at = None, _next_header(file, at + TAR_BLOCK)
            ended = at == file.size
        extension = extension.following()
        if member:
            yield member
    if file.size == 0:
        raise NoTarError
    if not ended:
        note("ends early")


class _Extension:
    """The PAX and GNU extension headers before a member. They replace fields of its own header."""

    def __init__(self, global_records: dict[bytes, bytes] | None = None) -> None:
        """global_records: PAX records that apply to all following members."""
        self._global = global_records or {}
        self._records = dict(self._global)
        self._long_name: bytes | None = None

    def add(self, kind: bytes, content: bytes) -> None:
        if kind == b"L":
            self._long_name = content.split(b"\0", 1)[0]
        elif kind == b"g":
            self._global |= _records(content)
            self._records = self._global | self._records
        elif kind in b"xX":
            self._records |= _records(content)

    def following(self) -> _Extension:
        """The extension for the next member: it keeps the global records only."""
        return _Extension(self._global)

    def name(self) -> bytes | None:
        return self._records.get(b"GNU.sparse.name") or self._records.get(b"path") or self._long_name

    def size(self, size: int) -> int:
        """The size of the member in bytes. size: the size in its own header."""
        return _checked(self._records[b"size"], 10) if b"size" in self._records else size

    @property
    def sparse(self) -> bool:
        return any(name.startswith(b"GNU.sparse.") for name in self._records)


def _member(
    file: Container, at: int, block: bytearray, kind: bytes, size: int, extension: _Extension
) -> tuple[Member | None, int]:
    """The member with the header `block` at `at`, and where the next header is. None for a folder or a non-member."""
    name = (extension.name() or _short_name(block)).decode("utf-8", "surrogateescape")
    if kind in _NO_DATA:
        return unreadable_member(name, _NO_DATA[kind]), at + TAR_BLOCK
    if kind == _FOLDER or (kind == b"\0" and name.endswith("/")):
        return None, at + TAR_BLOCK
    if kind in _NO_MEMBER:
        return None, _after(at, size)
    if kind == b"S":
        return unreadable_member(name, _SPARSE), _after(_last_sparse_header(file, at, block), size)
    if extension.sparse:
        return unreadable_member(name, _SPARSE), _after(at, size)
    return Member(name, at + TAR_BLOCK, size, f"tar:{crc(block)}"), _after(at, size)


def _after(at: int, size: int) -> int:
    """Where the next header is. at: where this one is. size: bytes of data after it."""
    return at + TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK


def _kind_and_size(block: bytearray) -> tuple[bytes, int]:
    """Type flag and size of a header. Raises: _DamagedError if its checksum is wrong."""
    if len(block) < TAR_BLOCK:
        raise _DamagedError
    field = block[148:156]
    without_field = _number(field) - 8 * ord(" ")  # the checksum counts its own field as spaces
    # Adler-32 sums bytes much faster than Python. It does so modulo 65521, and no header's sum reaches twice that.
    if (without_field + sum(field) + 1) % 65521 != zlib.adler32(block) & 0xFFFF:
        signed = sum(byte - 256 * (byte >= 128) for byte in block[:148] + block[156:])  # some old programs did this
        if without_field != signed:
            raise _DamagedError
    return bytes(block[156:157]), _number(block[124:136])


def _number(field: bytearray) -> int:
    """A number in a header: octal digits, or binary if the first bit is set."""
    if field[0] == 0x80:
        return _checked(b"%d" % int.from_bytes(field[1:], "big"), 10)
    return _checked(bytes(field).split(b"\0", 1)[0].strip() or b"0", 8)


def _checked(digits: bytes, base: int) -> int:
    try:
        value = int(digits, base)
    except ValueError:
        raise _DamagedError from None
    if not 0 <= value <= MAX_BYTES:
        raise _DamagedError
    return value


def _short_name(block: bytearray) -> bytes:
    name = bytes(block[:100]).split(b"\0", 1)[0]
    prefix = bytes(block[345:500]).split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _content(file: Container, at: int, size: int) -> bytes:
    """The data of the extension header at `at`."""
    data = file.read_at(at + TAR_BLOCK, size) if size <= _MAX_EXTENSION_BYTES else b""
    if len(data) < size:
        raise _DamagedError
    return bytes(data)


def _records(content: bytes) -> dict[bytes, bytes]:
    """The records of a PAX header. Each has the form `LENGTH NAME=VALUE` and ends with a newline."""
    records, at = {}, 0
    while at < len(content) and content[at]:
        digits, space, _ = content[at : at + 20].partition(b" ")
        end = at + _checked(digits, 10)
        name, equals, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        if not (space and equals and content[end - 1 : end] == b"\n"):
            raise _DamagedError
        records[name] = value
        at = end
    return records


def _last_sparse_header(file: Container, at: int, block: bytearray) -> int:
    """Where the last header block of a GNU sparse file is. Further blocks follow the first one if it has many holes."""
    more = block[482]
    while more:
        at += TAR_BLOCK
        block = file.read_at(at, TAR_BLOCK)
        if len(block) < TAR_BLOCK:
            raise _DamagedError
        more = block[504]
    return at


def _next_header(file: Container, at: int) -> int:
    """Where the next ustar, GNU or PAX header is, from `at` on; the end of the archive if there is none."""
    while at < file.size:
        chunk = file.read_at(at, _CHUNK_BYTES)
        for start in range(0, len(chunk), TAR_BLOCK):
            if chunk[start + 257 : start + 262] == b"ustar":
                try:
                    _kind_and_size(chunk[start : start + TAR_BLOCK])
                except _DamagedError:
                    continue
                return at + start
        if not chunk:
            break
        at += len(chunk)
    return file.size
