"""Counts what the workers of a supervisor have done: for the progress bar, and for the run's file of activity."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

from clipbatch.errors import ClipbatchError
from clipbatch.rundir import activity
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.workers.messages import BatchDone
from clipbatch.workers.progress import MIN_RATE_S, Progress, check_any_ok, check_bad
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import WorkerHandle

# How many times of `activity.EVERY_S` a rate covers.
_WINDOW = 4
# How long the end of a run waits for the file of activity to be removed; a store may not answer.
_END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the supervisor stops because of bad images."""

    # How many images may be bad, including those that `Progress` has counted already, but without those in shards of
    # other ranks; None: any number.
    bad: int | None = None
    # Whether one of its first rows has to be ok (`progress.check_any_ok`).
    any_ok: bool = False


class Tally:
    """The counts of one supervisor."""

    def __init__(self, run: RunDir, progress: Progress, limits: Limits, others: Set[int]) -> None:
        """others: the shards of other ranks that this one may do; more may be added later."""
        self._run, self._progress, self._limits, self._others = run, progress, limits, others
        # Of finished shards, and those of their rows that are bad.
        self._rows, self._bad = progress.done, progress.bad
        # How many of `_bad` are in shards of other ranks.
        self._bad_elsewhere = 0
        # The shards of other ranks whose rows are in the total of `Progress`, and the shards that others have done.
        self._extended, self._skipped = set[int](), set[int]()
        # All that this supervisor's workers have done, whatever became of it.
        self.tried, self.bad = 0, collections.Counter[str]()
        self.rows_open, self.bottleneck = 0, ""
        # time.monotonic() and `tried`: at the first batch, and then at every call of `rate`.
        self._moments: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW + 1)

    def extend(self, shard: int, rows: int) -> None:
        """Add the `rows` of a shard of another rank to the total, once, however many workers get it."""
        if shard not in self._extended:
            self._extended.add(shard)
            self._progress.extend(rows)

    def skip(self, shards: Mapping[int, int]) -> None:
        """Count the rows of shards that other ranks have done, if they are in the total. shards: rows by shard."""
        self._skipped |= shards.keys()
        rows = sum(n for shard, n in shards.items() if shard not in self._others or shard in self._extended)
        self._rows += rows
        self._progress.skip(rows)

    def add(self, worker: WorkerHandle, batch: BatchDone) -> None:
        """Count what `worker` has done. Raises: NothingLabelledError."""
        bad = sum(batch.bad.values())
        worker.rows += batch.rows
        worker.bad += bad
        self.tried += batch.rows
        self.bad.update(batch.bad)
        self.bottleneck = batch.bottleneck
        if not self._moments:
            self._moments.append((time.monotonic(), self.tried))
        if self._limits.any_ok:
            check_any_ok(self.tried, self.bad)

    def finish(self, worker: WorkerHandle, shard: int, *, kept: bool) -> None:
        """`worker` is the first that has finished `shard`. kept: the part from before stays."""
        if shard not in self._skipped:
            self._rows += worker.rows
            self.rows_open = max(0, self.rows_open - worker.rows)
        if not kept:
            self._bad += worker.bad
            self._bad_elsewhere += worker.bad if shard in self._others else 0

    def show(self, in_progress: Mapping[int, tuple[int, int]]) -> None:
        """Show how many rows are done. in_progress: by unfinished shard, the rows done and the bad ones of them.

        Raises: TooManyBadError.
        """
        self.rows_open = sum(rows for rows, _ in in_progress.values())
        bad = self._bad + sum(bad for _, bad in in_progress.values())
        self._progress.show(self._rows + self.rows_open, bad, self.bottleneck)
        elsewhere = sum(bad for shard, (_, bad) in in_progress.items() if shard in self._others)
        check_bad(bad - self._bad_elsewhere - elsewhere, self._limits.bad, self._run)

    def rate(self) -> float | None:
        """Images a second since the last calls; None where that is too short a time."""
        if not self._moments:
            return None
        self._moments.append((time.monotonic(), self.tried))
        (first_s, first), (last_s, last) = self._moments[0], self._moments[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= MIN_RATE_S else None


class Announcer:
    """Writes the supervisor's file of activity, in a thread of its own: a store may be slow to answer, or down."""

    def __init__(self, run: RunDir, plan: Plan, rank: Rank) -> None:
        self._run, self._plan, self._rank = run, plan.fingerprint, rank
        self._since, self._host = time.time(), socket.gethostname()
        self._name = activity.new_name(self._host)
        self._last_s: float | None = None
        self._entries: queue.SimpleQueue[activity.Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="activity", daemon=True)
        self._thread.start()

    def is_due(self) -> bool:
        """Whether it is time to call `say` again."""
        return self._last_s is None or time.monotonic() - self._last_s >= activity.EVERY_S

    def say(self, tally: Tally, devices: Collection[str], deaths: Mapping[int, int]) -> None:
        """Write what `tally` has counted. devices: where workers run. deaths: of workers, by shard."""
        self._last_s = time.monotonic()
        rate = tally.rate()
        entry = activity.Entry(
            plan=self._plan,
            host=self._host,
            pid=os.getpid(),
            rank=self._rank.number,
            world_size=self._rank.world,
            devices=sorted(devices),
            since=self._since,
            time=time.time(),
            rows=tally.tried,
            bad=dict(tally.bad),
            rows_open=tally.rows_open,
            images_per_s=None if rate is None else round(rate, 2),
            bottleneck=None if rate is None else tally.bottleneck,
            deaths={str(shard): count for shard, count in deaths.items()},
        )
        self._entries.put(entry)

    def close(self) -> None:
        """Remove the file. It expires if that takes too long."""
        self._entries.put(None)
        self._thread.join(_END_S)

    def _write(self) -> None:
        while (entry := self._entries.get()) is not None:
            with contextlib.suppress(OSError, ClipbatchError):  # a hint: the run does without it
                activity.write(self._run, self._name, entry)
        activity.remove(self._run, self._name)
