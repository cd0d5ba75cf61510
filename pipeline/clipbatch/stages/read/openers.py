"""Read a whole object of a store or the web, a member of an archive, or a whole local file; or say why it cannot be.

Open archives are shared by all threads, so that a member costs one read and no opening.
"""

from __future__ import annotations

import os
import stat
import threading

import pyarrow as pa

from clipbatch.errors import InputError
from clipbatch.storage import http, stores
from clipbatch.storage.archives import read_member
from clipbatch.storage.failures import RemoteError, first_line
from clipbatch.storage.files import Container, unwritten
from clipbatch.storage.ranges import open_container
from clipbatch.storage.retries import Clock
from clipbatch.storage.uris import is_outside
from clipbatch.types import Encoded, Item, Reject, Status

_CHUNK_BYTES = 2**20
# Archives that are kept open.
_MAX_OPEN = 64


def read_remote(item: Item, max_bytes: int, clock: Clock) -> Encoded | Reject:
    """Read the object at `item.path`. clock: the time limit of a web server's answer.

    Raises: any exception of the store's client.
    """
    if stores.is_web(item.path):
        fence = item.fence
        allowed = (lambda url: not is_outside(url, fence)) if fence is not None else (lambda url: True)
        silence_s = min(http.SILENCE_S, clock.limit_s / 3)  # so that there is time for another try
        left_s = clock.left_s()
        data = http.get(item.path, max_bytes=max_bytes, timeout_s=left_s, silence_s=silence_s, allowed=allowed)
        return Encoded(data=data) if data else Reject(status="empty", error="0 bytes")
    try:
        return _read_object(item.path, max_bytes)
    except InputError as error:
        return Reject(status="unreadable", error=str(error))
    except ValueError as error:  # as for a//b
        return Reject(status="unreadable", error=f"no name of an object: {error}")


def _read_object(url: str, max_bytes: int) -> Encoded | Reject:
    with stores.open_input_file(url) as file:
        size = file.size()
        if size == 0:
            return Reject(status="empty", error="0 bytes")
        if size > max_bytes:
            return Reject(status="too_large", error=f"{size} bytes, over the limit of {max_bytes}")
        codec = stores.content_codec(file)
        data = unwritten(size)
        view, done = memoryview(data), 0
        while done < size and (count := file.readinto(view[done:])):
            done += count
    if done < size:
        return Reject(status="truncated", error=f"the object shrank while it was read: {done} of {size} bytes")
    return Encoded(data=data) if codec is None else _decompressed(data, codec, max_bytes)


def _decompressed(packed: bytearray, codec: str, max_bytes: int) -> Encoded | Reject:
    data = bytearray()
    try:
        with pa.CompressedInputStream(pa.BufferReader(packed), codec) as stream:
            while len(data) <= max_bytes and (chunk := stream.read(_CHUNK_BYTES)):
                data += chunk
    except OSError as error:
        kind: Status = "truncated" if "Truncated" in str(error) else "corrupt"
        return Reject(status=kind, error=f"its Content-Encoding ({codec}) cannot be removed: {first_line(error)}")
    if len(data) > max_bytes:
        return Reject(status="too_large", error=f"more bytes than the limit of {max_bytes}")
    return Encoded(data=data) if data else Reject(status="empty", error="0 bytes")


class Archives:
    """The archives that were used last, open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By path, the least recently used first.
        self._open: dict[str, Container] = {}

    def member(self, item: Item, max_bytes: int) -> Encoded | Reject:
        """Read the bytes of `item`'s span. Raises: OSError; the archive is opened anew after that."""
        assert item.span
        try:
            return read_member(self._container(item.path), item.span, max_bytes)
        except OSError:
            with self._lock:
                self._open.pop(item.path, None)
            raise

    def _container(self, path: str) -> Container:
        with self._lock:
            container = self._open.pop(path, None)
            if container is not None:
                self._open[path] = container
                return container
        try:  # without the lock: a file system that hangs would block every thread
            container = open_container(path)
        except InputError as error:  # the store needs a package that is not installed
            raise RemoteError("unreadable", str(error)) from error
        with self._lock:
            self._open[path] = container
            while len(self._open) > _MAX_OPEN:
                del self._open[next(iter(self._open))]
        return container


def read_file(path: str, max_bytes: int) -> Encoded | Reject:
    """Read the file at `path`. Raises: OSError; ValueError for a NUL in the name."""
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
        done = count = os.readv(fd, [data])
        while count and done < size:
            count = os.readv(fd, [memoryview(data)[done:]])
            done += count
    finally:
        os.close(fd)
    if done < size:
        return Reject(status="truncated", error=f"the file shrank while it was read: {done} of {size} bytes")
    return Encoded(data)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
