"""Items -> encoded bytes, by reads that may fail, hang or lie. Knows nothing of images.

Each batch is read by one thread, file after file; the flow runs many such batches at a time. A file that does not
answer within the time limit is given up on: its thread, which no signal can free, is left behind as a daemon, and
another one goes on with the rest of the batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from clipbatch.config import ReadSettings
from clipbatch.read.fetch import Fetch
from clipbatch.types import Encoded, Item, ItemBatch, ReadBatch, Reject


class Read:
    """The read stage."""

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings
        self._fetch = Fetch(settings)
        self._local = threading.local()
        self.files = 0
        """Files done with so far, read or given up: a sign of life while no batch comes through."""

    def __call__(self, batch: ItemBatch) -> ReadBatch:
        """Read every item of `batch`; each slot gets its bytes or the reason why there are none."""
        job = _Job(batch.items)
        while (position := self._finish(job)) is not None:
            self._local.reader.jobs.put(None)
            self._local.reader = None
            job.abandoned = True
            item = job.items[position]
            assert item is not None
            slots = [*job.slots]
            slots[position] = Reject(
                status="timeout", error=f"no answer within {self._settings.read_timeout:g} s while reading {item.uri!r}"
            )
            job = _Job(batch.items, slots, position + 1)
            self._count()
        return ReadBatch(source=batch, slots=tuple(job.slots))

    def _finish(self, job: _Job) -> int | None:
        """Wait until this thread's reader has done `job`; the position of a file that has taken too long, if any."""
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = _Reader(self._fetch, self._count)
        reader.jobs.put(job)
        while True:
            position, begun = job.now
            left_s = begun + self._settings.read_timeout - time.monotonic()
            if job.done.wait(max(left_s, 0.001)):
                return None
            if job.now == (position, begun) and time.monotonic() - begun >= self._settings.read_timeout:
                return position

    def _count(self) -> None:
        self.files += 1  # two threads at once may count one: that it moves is enough


class _Job:
    """Items to read in turn, and how far the reader has got."""

    def __init__(
        self, items: tuple[Item | None, ...], slots: list[Encoded | Reject | None] | None = None, first: int = 0
    ) -> None:
        self.items = items
        self.slots: list[Encoded | Reject | None] = slots or [None] * len(items)
        self.first = first
        self.now = (first, time.monotonic())
        """The file in hand and since when; one tuple, so that both are read at once."""
        self.done = threading.Event()
        self.abandoned = False


class _Reader:
    """A daemon thread that does jobs one after the other, until it gets None for one."""

    def __init__(self, fetch: Fetch, count: Callable[[], None]) -> None:
        """count: called after each file."""
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._fetch, self._count = fetch, count
        threading.Thread(target=self._loop, name="reader", daemon=True).start()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None:
            for position in range(job.first, len(job.items)):
                item = job.items[position]
                if job.abandoned:  # this file came back at last; another reader has gone on
                    return
                if item is not None:
                    job.now = (position, time.monotonic())
                    job.slots[position] = item.reject or self._fetch(item)
                    self._count()
            job.done.set()
