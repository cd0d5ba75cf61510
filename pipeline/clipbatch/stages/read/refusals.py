"""End a run whose reads all fail for one reason, before their rows are published as bad ones.

When a token expires, a bucket's policy changes or a server goes down for good, every read from there fails. None of
those rows is bad. The rows that fail in a row, with no success from the same store or host in between, are a streak:

- At `limit` reads the run stops, unless an object that was read before can still be read: then it is the objects.
- A shard with rows of a streak is not published before that is decided, again by an object that was read before. Where
  there is none, the shard waits until the streak ends, reaches the limit, or nothing is left to read.
- A store that refuses the credentials themselves refuses them for every object, so one such row keeps its shard back.

Only failures that concern a whole store or host count (`failures.Cause`): no right to read, or no proper answer. A web
server without a proper answer counts only if it has answered before, since lists of urls name many dead ones. Names
that do not exist, damaged images and so on never count, nor do failures of file systems.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from clipbatch.errors import UnreachableError
from clipbatch.storage.failures import RemoteError
from clipbatch.storage.retries import Host
from clipbatch.types import Encoded, Item, Reject

# Reads in a row that a host refuses before the run stops, unless the user says otherwise.
MAX_REFUSED = 100
_MAX_HOSTS = 10_000
_POLL_S = 0.1
# Polls in a row without a batch in the read stage, after which nothing more is expected.
_IDLE_POLLS = 3
_REMEDIES = {
    "credentials": "renew the credentials (AWS_SESSION_TOKEN, `aws sso login`, the key file, the clock), then run the "
    "same command again",
    "access": "renew the credentials and check that they may read these objects, then run the same command again; if "
    "the store answers 403 for names that do not exist, check the names; signed urls that have expired need a manifest "
    "with new ones, and a new run",
    "unreachable": "check the network, the endpoint and the server's state, then run the same command again",
}


@dataclass(slots=True, kw_only=True)
class _Streak:
    """Reads from one host that failed, with no success in between."""

    # time.monotonic() of the first failure.
    since: float
    # True for credentials and access; False for no answer.
    refused: bool
    # The last one.
    error: RemoteError
    # Failures of the same kind in a row.
    count: int = 0
    # The row_ids of all of them.
    rows: set[int] = field(default_factory=set)
    # Whether a thread is finding out whether the objects or the host are to blame.
    is_checked: bool = False


class Refusals:
    """The streaks of a run. Used by the threads that read, and by the one that writes."""

    def __init__(self, limit: int | None, probe: Callable[[Item], RemoteError | None]) -> None:
        """limit: reads in a row after which the run stops; None for `MAX_REFUSED`, 0 for no limit. probe: reads an
        item again; returns the error, or None."""
        self._limit, self._probe = MAX_REFUSED if limit is None else limit, probe
        self._lock = threading.Lock()
        self._streaks: dict[str, _Streak] = {}
        # By host, an object that was read.
        self._good: dict[str, Item] = {}
        self._reading = 0
        self._stop: UnreachableError | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Meanwhile the read stage reads a batch."""
        with self._lock:
            self._reading += 1
        try:
            yield
        finally:
            with self._lock:
                self._reading -= 1

    def note(self, item: Item, host: Host, begun: float, outcome: Encoded | Reject, error: RemoteError | None) -> None:
        """Note what became of the read of `item`. begun: time.monotonic() at the beginning of its last try.

        Raises: UnreachableError where it is the last one of a streak that stops the run.
        """
        if not self._limit:
            return
        if error is None or error.cause is None:
            if isinstance(outcome, Encoded):
                self._good[host.name] = item
                if len(self._good) > _MAX_HOSTS:
                    self._good.pop(next(iter(self._good)), None)
            if self._streaks:
                self._end_streak(host, begun)
            return
        if self._add(item, host, error):
            self._check(host.name)

    def settle(self, rows: range) -> None:
        """Decide whether a shard of `rows` (row_ids) may be published; waits where that is not known yet.

        Raises: UnreachableError where rows of it failed for a reason that is not theirs.
        """
        idle = 0
        while True:
            if self._stop is not None:
                raise self._stop
            names = [name for name, streak in list(self._streaks.items()) if self._concerns(streak, rows)]
            if not names:
                return
            for name in names:
                if name in self._good or self._is_certain(name):
                    self._check(name)
            idle = 0 if self._reading else idle + 1
            if idle >= _IDLE_POLLS:
                return
            time.sleep(_POLL_S)

    def _concerns(self, streak: _Streak, rows: range) -> bool:
        with self._lock:
            return any(row in rows for row in streak.rows)

    def _is_certain(self, name: str) -> bool:
        streak = self._streaks.get(name)
        return streak is not None and streak.error.cause == "credentials"

    def _end_streak(self, host: Host, begun: float) -> None:
        with self._lock:
            streak = self._streaks.get(host.name)
            if streak is not None and begun > streak.since and not streak.is_checked:
                del self._streaks[host.name]

    def _add(self, item: Item, host: Host, error: RemoteError) -> bool:
        """Add a failure to the host's streak; returns whether the streak is as long as the limit."""
        refused = error.cause in ("credentials", "access")
        is_web = host.name.startswith(("http://", "https://"))
        if is_web and not refused and host.name not in self._good:
            return False
        with self._lock:
            streak = self._streaks.get(host.name)
            if streak is None:
                streak = _Streak(since=time.monotonic(), refused=refused, error=error)
                self._streaks[host.name] = streak
            if streak.refused != refused:
                streak.refused, streak.count = refused, 0
            streak.error = error
            streak.count += 1
            streak.rows.add(item.row_id)
            return streak.count >= self._limit

    def _check(self, name: str) -> None:
        """Find out whether the host `name` is to blame for its streak, or the objects are; these end the streak.

        Raises: UnreachableError where the host is.
        """
        with self._lock:
            streak = self._streaks.get(name)
            if streak is None or streak.is_checked:
                return
            streak.is_checked = True
            good = self._good.get(name)
        error = self._probe(good) if good is not None else streak.error
        with self._lock:
            if error is None or error.cause is None:
                self._streaks.pop(name, None)
                return
            self._stop = self._stop or UnreachableError(_message(name, streak, error))
            raise self._stop


def _message(name: str, streak: _Streak, error: RemoteError) -> str:
    reads = f"{streak.count} reads in a row" if streak.count > 1 else "a read"
    what = "were refused" if streak.refused else "got no proper answer"
    if streak.count == 1:
        what = what.replace("were", "was")
    cause = "credentials" if "credentials" in (streak.error.cause, error.cause) else str(error.cause)
    said = streak.error if streak.error.cause == cause else error
    return (
        f"{reads} from {name} {what}, for a reason that concerns all of them: {said}. Remedy: {_REMEDIES[cause]}. Rows "
        "that only this has spoiled are not published; if they are to be bad rows, set --max-refused 0"
    )
