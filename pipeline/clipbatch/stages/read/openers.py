"""A whole object of a store or of the web, or why it cannot be had.

Members of archives. Open archives are shared by all threads, so a member costs one read and no opening.

A whole local file, or why it cannot be had.
"""

from __future__ import annotations

import os
import stat
import threading

from clipbatch.errors import InputError
from clipbatch.storage import http, stores
from clipbatch.storage.archives import read_member
from clipbatch.storage.files import Container, unwritten
from clipbatch.storage.ranges import open_container
from clipbatch.storage.uris import is_outside
from clipbatch.types import Encoded, Item, Reject

_LASTING = (
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "PermissionDenied",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
    "Unauthenticated",
)
"""Words of stores' errors that another try would meet again."""


def read_remote(item: Item, max_bytes: int, timeout_s: float) -> Encoded | Reject:
    """The bytes of the object at `item.path`. timeout_s: for a web server's answer.

    Raises: OSError as it comes.
    """
    if stores.is_web(item.path):
        fence = item.fence
        allowed = (lambda url: not is_outside(url, fence)) if fence is not None else (lambda url: True)
        data = http.get(item.path, max_bytes=max_bytes, timeout_s=timeout_s, allowed=allowed)
        return Encoded(data=data) if data else Reject(status="empty", error="0 bytes")
    try:
        return _read_object(item.path, max_bytes)
    except InputError as error:
        return Reject(status="unreadable", error=str(error))
    except OSError:
        raise
    except ValueError as error:  # as for a//b
        return Reject(status="unreadable", error=f"no name of an object: {error}")
    except Exception as error:  # what fsspec's file systems raise is of any kind
        raise OSError(f"{type(error).__name__}: {error}") from error


def _read_object(url: str, max_bytes: int) -> Encoded | Reject:
    with stores.open_input_file(url) as file:
        size = file.size()
        if size == 0:
            return Reject(status="empty", error="0 bytes")
        if size > max_bytes:
            return Reject(status="too_large", error=f"{size} bytes, over the limit of {max_bytes}")
        data = unwritten(size)
        view, got = memoryview(data), 0
        while got < size and (count := file.readinto(view[got:])):
            got += count
    if got < size:
        return Reject(status="truncated", error=f"the object shrank while it was read: {got} of {size} bytes")
    return Encoded(data=data)


def passes(error: OSError) -> bool:
    """Whether another try may not meet `error` of a store or of the web."""
    if isinstance(error, http.WebError):
        return error.passes
    return not isinstance(error, PermissionError) and not any(word in str(error) for word in _LASTING)


_MAX_OPEN = 64


class Archives:
    """The archives that were used last, open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Container] = {}
        """By path, the least recently used first."""

    def member(self, item: Item, max_bytes: int) -> Encoded | Reject:
        """The bytes of `item`'s span. Raises: OSError as it comes, after which its archive is opened anew."""
        assert item.span
        try:
            return read_member(self._container(item.path), item.span, max_bytes)
        except OSError:
            with self._lock:
                self._open.pop(item.path, None)
            raise

    def _container(self, path: str) -> Container:
        with self._lock:
            found = self._open.pop(path, None)
            if found is not None:
                self._open[path] = found
                return found
        try:  # not while holding the lock: a file system that hangs would hold up every thread
            made = open_container(path)
        except InputError as error:  # a store that this machine lacks the package for
            raise OSError(str(error)) from error
        with self._lock:
            self._open[path] = made
            while len(self._open) > _MAX_OPEN:
                del self._open[next(iter(self._open))]
        return made


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
