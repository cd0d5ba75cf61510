"""Try again what may pass, and slow all readers of this process down together when a store or host asks for it.

A store that is overloaded answers 503 (SlowDown) or 429 until its clients send less. If every reader waits by itself,
the store never gets its rest and rows run out of tries. So what a host says is kept in one place for all readers: while
it has them pause, nobody asks it, and the pause grows up to some seconds until it answers again.

The time for which a host has everybody pause does not count against the time limit of a read (`Clock`), so rows are not
lost to a storm that is longer than that limit. The number of tries bounds a storm that does not end.

A host that gives no proper answer for as long as one read may take is down: then a read has one try, until the host
answers again. Without that, a list of a thousand images on a dead host would take a thousand time limits.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from clipbatch.errors import ClipbatchError
from clipbatch.storage.failures import RemoteError, passes, remote_error
from clipbatch.storage.uris import is_url

# Further tries of a read from a store or the web, unless the user says otherwise: about a minute of waiting.
REMOTE_RETRIES = 30
# For requests that have no limit of their own, such as those that list a folder.
TIME_LIMIT_S = 60.0
_FIRST_WAIT_S = 0.1
_MAX_WAIT_S = 5.0
# Within which a host that has never answered counts as down: many names in lists of urls lead nowhere.
_UNKNOWN_HOST_S = 10.0
_MAX_HOSTS = 10_000
_T = TypeVar("_T")


class Host:
    """What the readers of this process know of one bucket, store or web server."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Requests that failed and were tried again.
        self.tries_again = 0
        # Seconds for which at least one reader waited for this host before another try.
        self.waited_s = 0.0
        self._lock = threading.Lock()
        # time.monotonic() at which the pause ends.
        self._resume_at = 0.0
        # Length of all pauses, the rest of the present one included.
        self._paused_s = 0.0
        # Pauses since the last proper answer.
        self._pauses = 0
        self._waiting, self._waiting_since = 0, 0.0
        self._heard = False
        self._failing_since: float | None = None
        self._failed_at = 0.0

    def paused_s(self) -> float:
        """Seconds for which this host has had all readers pause."""
        return self._paused_s - max(0.0, self._resume_at - time.monotonic())

    def answered(self) -> None:
        """Note that the host gave what it was asked for, or said that there is no such thing."""
        if self._pauses or self._failing_since is not None or not self._heard:
            with self._lock:
                self._heard, self._pauses, self._failing_since = True, 0, None

    def failed(self, error: RemoteError) -> None:
        """Note a failure that may pass; if the host asks for it, all readers pause."""
        with self._lock:
            self._heard = self._heard or not error.silent
            now = time.monotonic()
            if not error.slow_down:
                if self._failing_since is None or now - self._failed_at > TIME_LIMIT_S:  # nobody has asked it since
                    self._failing_since = now
                self._failed_at = now
                return
            self._failing_since = None
            wait_s = error.retry_after_s
            if now >= self._resume_at:  # else these requests were sent before the pause began
                longest_s = min(_MAX_WAIT_S, _FIRST_WAIT_S * 2**self._pauses)
                wait_s = max(wait_s, random.uniform(longest_s / 2, longest_s))
                self._pauses += 1
            resume_at = max(self._resume_at, now + wait_s)
            self._paused_s += resume_at - max(now, self._resume_at)
            self._resume_at = resume_at

    def is_down(self, limit_s: float) -> bool:
        """Whether the host has given no proper answer for `limit_s` seconds, the time limit of a read."""
        since = self._failing_since
        patience_s = limit_s if self._heard else min(limit_s, _UNKNOWN_HOST_S)
        return since is not None and time.monotonic() - since >= patience_s

    def wait_for_pause(self) -> None:
        """Wait until the host's pause is over; readers go on one after the other, not all at once."""
        while (left_s := self._resume_at - time.monotonic()) > 0:
            with self.waiting():
                time.sleep(left_s + random.uniform(0, _FIRST_WAIT_S))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Meanwhile a reader waits for this host."""
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self.waited_s += time.monotonic() - self._waiting_since


class Clock:
    """The time that a read takes, without the pauses that its host asked for. host: None on a file system."""

    __slots__ = ("_paused_s", "begun", "host", "limit_s")

    def __init__(self, limit_s: float, host: Host | None = None) -> None:
        self.host, self.limit_s = host, limit_s
        self.begun = time.monotonic()
        self._paused_s = 0.0 if host is None else host.paused_s()

    def left_s(self) -> float:
        """Seconds until the read has taken too long; negative after that."""
        paused_s = 0.0 if self.host is None else self.host.paused_s() - self._paused_s
        return self.limit_s + paused_s - (time.monotonic() - self.begun)


_hosts: dict[str, Host] = {}
_lock = threading.Lock()


def host_of(url: str) -> Host:
    """The bucket, store or web server of `url`; the same object for all readers of this process."""
    scheme, _, rest = url.partition("://")
    name = f"{scheme}://{rest.partition('/')[0]}"
    host = _hosts.get(name)
    if host is None:
        shown = name
        if "@" in name:  # a password, maybe
            with contextlib.suppress(ValueError):
                shown = f"{scheme}://{urlsplit(name).hostname}"
        with _lock:
            host = _hosts.setdefault(name, Host(shown))
            while len(_hosts) > _MAX_HOSTS:
                del _hosts[next(iter(_hosts))]
    return host


def forget_hosts() -> None:
    """Know nothing of any host from now on: the same name may lead to another server."""
    with _lock:
        _hosts.clear()


def waits() -> dict[str, dict[str, float]]:
    """By host: how often this process has tried again, and how many seconds it has waited for that, so far."""
    with _lock:
        hosts = list(_hosts.values())
    return {
        host.name: {"tries_again": host.tries_again, "waited_s": round(host.waited_s, 3)}
        for host in hosts
        if host.tries_again
    }


def waits_since(before: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What has been added to `waits` since it returned `before`."""
    added = {
        name: {key: round(value - before.get(name, {}).get(key, 0.0), 3) for key, value in of_host.items()}
        for name, of_host in waits().items()
    }
    return {name: of_host for name, of_host in added.items() if of_host["tries_again"]}


def tries_again() -> int:
    """How often this process has tried again: a sign of life while no read succeeds."""
    return sum(host.tries_again for host in list(_hosts.values()))


def keep_trying(call: Callable[[], _T], clock: Clock, retries: int) -> _T:
    """What `call` returns, which is tried again after errors that may pass, `retries` times at most and while `clock`
    has time left. The waits in between are random, and longer each time up to some seconds.

    Raises: OSError of the last try. Of a store or the web it is a `RemoteError`, whatever its client raises.
    """
    host, attempt = clock.host, 0
    while True:
        if host is not None:
            host.wait_for_pause()
        try:
            result = call()
        except (ClipbatchError, ValueError):  # not a failure of the host
            raise
        except Exception as raised:  # what fsspec's file systems raise is of any kind
            if host is None and not isinstance(raised, OSError):
                raise
            error = raised if isinstance(raised, OSError) and host is None else remote_error(raised)
            wait_s = None
            if passes(error):
                wait_s = _wait_s(error, clock, attempt)
            elif host is not None:
                host.answered()
            if wait_s is None or attempt >= retries:
                if error is raised:
                    raise
                raise error from raised
        else:
            if host is not None:
                host.answered()
            return result
        attempt += 1
        if host is None:
            time.sleep(wait_s)
            continue
        host.tries_again += 1  # two threads at once may count one
        with host.waiting():
            time.sleep(wait_s)


def _wait_s(error: OSError, clock: Clock, attempt: int) -> float | None:
    """Seconds to wait after `error`, which may pass, before another try, besides the host's pause; None where there is
    to be no other try."""
    left_s, host = clock.left_s(), clock.host
    longest_s = min(_MAX_WAIT_S, max(0.5, clock.limit_s / 12))
    wait_s = random.uniform(0, min(longest_s, 2 * _FIRST_WAIT_S * 2 ** min(attempt, 10)))
    if host is not None:
        assert isinstance(error, RemoteError)
        if error.retry_after_s > left_s:
            return None
        host.failed(error)
        if host.is_down(clock.limit_s):
            return None
        wait_s = 0.0 if error.slow_down else max(wait_s, error.retry_after_s)
    if wait_s < left_s:
        return wait_s
    return left_s / 2 if left_s > _FIRST_WAIT_S else None


def patiently(call: Callable[[], _T], url: str) -> _T:
    """As `keep_trying`, for a request to `url` that has no time limit or number of tries of its own."""
    host = host_of(url) if is_url(url) else None
    return keep_trying(call, Clock(TIME_LIMIT_S, host), REMOTE_RETRIES)
