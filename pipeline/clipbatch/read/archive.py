"""Members of archives. Open archives are shared by all threads, so a member costs one read and no opening."""

from __future__ import annotations

import threading

from clipbatch.container import Container, open_container, read_member
from clipbatch.errors import InputError
from clipbatch.types import Encoded, Item, Reject

_MOST_OPEN = 64


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
            while len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
        return made
