"""One item's bytes, wherever they are, with further tries after errors that may pass."""

from __future__ import annotations

import errno
import time

from clipbatch.config import ReadSettings
from clipbatch.read.files import read_file
from clipbatch.types import Encoded, Item, Reject

_PASSING = frozenset((errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR, errno.ENFILE, errno.EMFILE))
"""Errors that another try may not meet."""


class Fetch:
    """Called with an `Item`, by many threads at a time."""

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings

    def __call__(self, item: Item) -> Encoded | Reject:
        """The bytes of `item`, or why there are none."""
        retries = self._settings.read_retries
        for attempt in range(retries + 1):
            try:
                return read_file(item.path, self._settings.max_bytes)
            except ValueError as error:  # a NUL in the name
                return Reject(status="missing", error=str(error))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                    return Reject(status="missing", error=f"{error.strerror}")
                if error.errno not in _PASSING or attempt == retries:
                    return Reject(status="unreadable", error=f"{error.strerror or error}")
            time.sleep(0.1 * 4**attempt)
        raise AssertionError("the last attempt returns")
