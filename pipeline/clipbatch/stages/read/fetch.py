"""Read one item's bytes from wherever they are, and try again after errors that may pass."""

from __future__ import annotations

import dataclasses
import time

from clipbatch.config import ReadSettings
from clipbatch.stages.read.named import base64_kind, read_data_uri, without_blanks
from clipbatch.stages.read.openers import Archives, read_file, read_remote
from clipbatch.stages.read.refusals import Refusals
from clipbatch.stages.read.table import COLUMN, ReadTable
from clipbatch.storage.failures import RemoteError, first_line, is_missing, remote_error
from clipbatch.storage.retries import REMOTE_RETRIES, Clock, host_of, keep_trying
from clipbatch.storage.stores import explained
from clipbatch.storage.uris import is_data_uri, is_outside, is_url
from clipbatch.types import Encoded, Item, Reject

# Further tries of a read from a file system, unless the user says otherwise.
LOCAL_RETRIES = 3


class Fetch:
    """Called with an `Item`, by many threads at a time."""

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings
        self.forget()

    def forget(self) -> None:
        """Open archives and tables anew from now on. Reads in progress go on."""
        self._archives, self._tables = Archives(), ReadTable(self._settings.max_bytes)

    def clock(self, item: Item) -> Clock:
        """The time limit of a read of `item`, which begins now."""
        host = host_of(item.path) if is_url(item.path) else None
        return Clock(self._settings.read_timeout, host)

    def __call__(self, item: Item, clock: Clock | None = None, refusals: Refusals | None = None) -> Encoded | Reject:
        """The bytes of `item`, or why there are none.

        clock: of this read; None to start one. refusals: told of reads that a store or host refuses.
        Raises: UnreachableError as `refusals` does.
        """
        clock = clock or self.clock(item)
        begun = 0.0
        failed: OSError | ValueError | None = None
        if clock.host is None and item.span is None:  # nearly always this is all
            try:
                return self._read(item, clock)
            except (OSError, ValueError) as first:
                failed = first

        def once() -> Encoded | Reject:
            nonlocal begun, failed
            begun = time.monotonic()
            if failed is not None:
                error, failed = failed, None
                raise error
            return self._read(item, clock)

        retries = self._settings.read_retries
        if retries is None:
            retries = LOCAL_RETRIES if clock.host is None else REMOTE_RETRIES
        error: RemoteError | None = None
        outcome: Encoded | Reject
        try:
            outcome = keep_trying(once, clock, retries)
        except ValueError as invalid:  # a NUL in the name
            return Reject(status="missing", error=str(invalid))
        except OSError as failure:
            if isinstance(failure, RemoteError):
                failure = error = explained(failure, item.path)
            outcome = self._hinted(item, _reject(failure), clock)
        if refusals is not None and clock.host is not None:
            refusals.note(item, clock.host, begun, outcome, error)
        return outcome

    def probe(self, item: Item) -> RemoteError | None:
        """Read `item`, of a store or the web, once more. Returns why it cannot be read now; None if it can."""
        clock = self.clock(item)
        try:
            keep_trying(lambda: self._read(item, clock), clock, REMOTE_RETRIES)
        except ValueError:
            return None
        except OSError as error:
            return explained(remote_error(error), item.path)
        return None

    def _read(self, item: Item, clock: Clock) -> Encoded | Reject:
        if item.span and item.span.method.startswith(COLUMN):
            return self._tables(item.path, item.span, clock)
        if item.span:
            return self._archives.member(item, self._settings.max_bytes)
        if clock.host is not None:
            return read_remote(item, self._settings.max_bytes, clock)
        if is_data_uri(item.path):
            return read_data_uri(item.path, self._settings.max_bytes)
        return read_file(item.path, self._settings.max_bytes)

    def _hinted(self, item: Item, reject: Reject, clock: Clock) -> Reject:
        """`reject`; where nothing of the item's name exists, with a hint on what is wrong with the name."""
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
            other = self._read(item._replace(uri=uri, path=path), clock)
        except (OSError, ValueError):
            return reject
        if isinstance(other, Reject) and other.status == "missing":
            return reject
        hint = f"the name has blanks at its ends, and without them it is there: {uri!r}"
        return dataclasses.replace(reject, error=_valid(f"{reject.error}; {hint}"))


def _reject(error: OSError) -> Reject:
    if isinstance(error, RemoteError):
        return Reject(status=error.status, error=_valid(str(error)))
    if is_missing(error):
        return Reject(status="missing", error=error.strerror or "there is no such object")
    return Reject(status="unreadable", error=_valid(first_line(error)))


def _valid(text: str) -> str:
    """`text` as UTF-8 can hold it: a url that is quoted in it may contain raw bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
