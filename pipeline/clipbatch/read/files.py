"""A whole local file, or why it cannot be had."""

from __future__ import annotations

import os
import stat

from clipbatch.buffers import unwritten
from clipbatch.types import Encoded, Reject


def read_file(path: str, max_bytes: int) -> Encoded | Reject:
    """The bytes of the file at `path`. Raises: OSError as it comes; ValueError for a NUL in the name."""
    mode = os.stat(path).st_mode  # before opening: opening a pipe waits for its writer
    if not stat.S_ISREG(mode):
        return Reject(status="unreadable", error=f"{_kind(mode)}, not a file")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            return Reject(status="empty", error="0 bytes")
        if size > max_bytes:
            return Reject(status="too_large", error=f"{size} bytes, over the limit of {max_bytes}")
        data = unwritten(size)
        view, got = memoryview(data), 0
        while got < size and (count := os.readv(fd, [view[got:]])):
            got += count
    finally:
        os.close(fd)
    if got < size:
        return Reject(status="truncated", error=f"the file shrank while it was read: {got} of {size} bytes")
    return Encoded(data=data)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
