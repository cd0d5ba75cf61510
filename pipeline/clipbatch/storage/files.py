"""Files that are read at any position (seekable files, containers), and memory to read into."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import stat
import weakref
from typing import Protocol


class Seekable(io.RawIOBase):
    """A file of known size with a position, for one thread at a time. Subclasses add `read`."""

    size: int
    at: int = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at


_new = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)


def unwritten(length: int) -> bytearray:
    """`length` bytes with any content. The caller has to fill them all, or cut off the rest.

    `bytearray(length)` would write zeros, and so touch every page for the first time, while it holds Python's lock.
    That is half of the time for which reading a photograph holds the lock.
    """
    memory: bytearray = _new(None, length)
    return memory


class Container(Protocol):
    """A local or remote file of known size, read by many threads at a time."""

    # Bytes, when it was opened.
    size: int

    def read_at(self, start: int, length: int) -> bytearray:
        """Read bytes [start, start + length), fewer where the container ends before. Raises: OSError."""


class LocalFile:
    """A container on a local or mounted file system. It is closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        """Raises: OSError; ValueError for a NUL in the name."""
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: opening a pipe waits for its writer
            raise OSError(errno.EINVAL, "not a file", path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read_at(self, start: int, length: int) -> bytearray:
        data = unwritten(max(0, min(length, self.size - start)))
        got = os.preadv(self._fd, [data], start) if data else 0
        while got < len(data):
            rest = bytearray(len(data) - got)
            count = os.preadv(self._fd, [rest], start + got)
            if count == 0:  # it shrank since it was opened
                del data[got:]
            data[got : got + count] = rest[:count]
            got += count
        return data
