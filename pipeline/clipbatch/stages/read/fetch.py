"""One item's bytes, wherever they are, with further tries after errors that may pass."""

from __future__ import annotations

import dataclasses
import errno
import time

from clipbatch.config import ReadSettings
from clipbatch.stages.read.named import base64_kind, read_data_uri, without_blanks
from clipbatch.stages.read.openers import Archives, passes, read_file, read_remote
from clipbatch.stages.read.table import COLUMN, ReadTable
from clipbatch.storage.http import WebError
from clipbatch.storage.uris import is_data_uri, is_outside, is_url
from clipbatch.types import Encoded, Item, Reject

_PASSING = frozenset((errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR, errno.ENFILE, errno.EMFILE))
"""Errors that another try may not meet."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class Fetch:
    """Called with an `Item`, by many threads at a time."""

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings
        self.forget()

    def forget(self) -> None:
        """Open archives and tables anew from now on. What is being read is read to its end."""
        self._archives, self._tables = Archives(), ReadTable(self._settings.max_bytes)

    def __call__(self, item: Item) -> Encoded | Reject:
        """The bytes of `item`, or why there are none."""
        until = time.monotonic() + self._settings.read_timeout
        for attempt in range(self._settings.read_retries + 1):
            try:
                return self._read(item, until - time.monotonic())
            except ValueError as error:  # a NUL in the name
                return Reject(status="missing", error=str(error))
            except OSError as error:
                wait_s = max(0.1 * 4**attempt, getattr(error, "retry_after_s", 0.0))
                last = attempt == self._settings.read_retries or time.monotonic() + wait_s >= until
                if last or not _passes(error):
                    return self._explained(item, _reject(error), until)
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns")

    def _read(self, item: Item, left_s: float) -> Encoded | Reject:
        if item.span and item.span.method.startswith(COLUMN):
            return self._tables(item.path, item.span, left_s)
        if item.span:
            return self._archives.member(item, self._settings.max_bytes)
        if is_url(item.path):
            return read_remote(item, self._settings.max_bytes, left_s)
        if is_data_uri(item.path):
            return read_data_uri(item.path, self._settings.max_bytes)
        return read_file(item.path, self._settings.max_bytes)

    def _explained(self, item: Item, reject: Reject, until: float) -> Reject:
        """`reject`, with what is wrong with the name where there is nothing of that name. until: time.monotonic()"""
        if reject.status != "missing" or item.span is not None:
            return reject
        if kind := base64_kind(item.uri):
            hint = f"the name is the base64 text of an image: write data:{kind};base64, before it"
            return dataclasses.replace(reject, error=f"{reject.error}; {hint}")
        trimmed = without_blanks(item.uri, item.path)
        if trimmed is None or (item.fence is not None and is_outside(trimmed[1], item.fence)):
            return reject
        uri, path = trimmed
        try:
            there = self._read(dataclasses.replace(item, uri=uri, path=path), until - time.monotonic())
        except (OSError, ValueError):
            return reject
        if isinstance(there, Reject) and there.status == "missing":
            return reject
        hint = f"the name has blanks at its ends, and without them it is there: {uri!r}"
        return dataclasses.replace(reject, error=_valid(f"{reject.error}; {hint}"))


def _passes(error: OSError) -> bool:
    if error.errno is None:  # not the operating system's
        return passes(error)
    return error.errno in _PASSING


def _reject(error: OSError) -> Reject:
    if isinstance(error, WebError):
        return Reject(status=error.status, error=_valid(str(error)))
    if isinstance(error, FileNotFoundError) or error.errno in _GONE:
        return Reject(status="missing", error=error.strerror or "there is no such object")
    text = error.strerror or str(error).strip().partition("\n")[0]
    return Reject(status="unreadable", error=_valid(text) or type(error).__name__)


def _valid(text: str) -> str:
    """`text` as UTF-8 can hold it; a url that is quoted in it may hold raw bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
