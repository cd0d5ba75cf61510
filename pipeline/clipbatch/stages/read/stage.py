"""The read stage: items -> encoded bytes, by reads that may fail, hang or lie. Knows nothing about images.

Each batch is read by a few threads (readers), one item at a time, and the flow has many batches read at once. No signal
can free a thread that hangs in a read. So an item that takes longer than its time limit is given up: its reader is left
behind as a daemon thread, and another reader takes its place.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from clipbatch.config import ReadSettings
from clipbatch.stages.read.fetch import Fetch
from clipbatch.stages.read.refusals import Refusals
from clipbatch.storage import retries
from clipbatch.storage.failures import RemoteError
from clipbatch.storage.retries import Clock
from clipbatch.storage.uris import is_url
from clipbatch.types import Encoded, Item, ItemBatch, Picture, ReadBatch, Reject

# Reads at the same time from file systems.
LOCAL_READS = 16
# Reads at the same time from stores and the web, where most of a read is waiting. They hide a latency of 50 ms up to
# 1000 images/s.
REMOTE_READS = 64
# How long `close` waits for a thread that has nothing to do.
_END_S = 5.0


class Read:
    """Called with an `ItemBatch`, by several threads at a time."""

    def __init__(self, settings: ReadSettings, batches: int = 1) -> None:
        """batches: how many batches may be read at the same time."""
        self.batches = min(batches, settings.read_threads or batches)
        self._settings = settings
        self._fetch = Fetch(settings)
        self.probe = self._fetch.probe
        self._idle: deque[_Reader] = deque()
        self._readers: list[_Reader] = []
        self._changing = threading.Lock()
        self._done = 0
        # Whether the last batch had images of a store or the web.
        self.remote = False

    @property
    def files(self) -> int:
        """Files read or given up so far, and further tries: a sign of life while no batch is finished."""
        return self._done + retries.tries_again()

    def __call__(self, batch: ItemBatch, refusals: Refusals | None = None) -> ReadBatch:
        """Read every item of `batch`; each slot gets its bytes, or the reason why there are none.

        refusals: told of reads that a store or host refuses. Raises: UnreachableError as `refusals` does.
        """
        job = _BatchRead(batch.items, self._count, refusals)
        readers = [self._start(job) for _ in range(min(self._share(batch), len(job.waiting)))]
        while not job.done.wait(self._patience_s(readers, job)):
            for reader in [reader for reader in readers if self._gave_up(reader, job)]:
                readers.remove(reader)
                if job.waiting:
                    readers.append(self._start(job))
        return ReadBatch(source=batch, slots=job.result())

    def forget(self) -> None:
        """Forget the open archives and tables. Call it before each run, since they may have changed."""
        self._fetch.forget()

    def close(self) -> None:
        """End the threads. Call it when no batch is being read. It does not wait for one that hangs in a file."""
        with self._changing:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.jobs.put(None)
        for reader in readers:
            if reader.item is None:
                reader.thread.join(_END_S)
        self._idle.clear()

    def _share(self, batch: ItemBatch) -> int:
        """How many readers a batch gets, so that all batches together have the number that is wanted."""
        self.remote = any(item is not None and is_url(item.path) for item in batch.items)
        reads = self._settings.read_threads or (REMOTE_READS if self.remote else LOCAL_READS)
        return math.ceil(reads / self.batches)

    def _count(self) -> None:
        self._done += 1  # two threads at once may count one, which is enough for a sign of life

    def _start(self, job: _BatchRead) -> _Reader:
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = _Reader(self._fetch, self._idle)
            with self._changing:
                self._readers = [other for other in self._readers if other.thread.is_alive()] + [reader]
        reader.jobs.put(job)
        return reader

    def _patience_s(self, readers: list[_Reader], job: _BatchRead) -> float:
        """Seconds until the first of `readers` may have taken too long."""
        left_s = [item.clock.left_s() for reader in readers if (item := reader.item) and item.job is job]
        return max(min(left_s, default=self._settings.read_timeout), 0.001)

    def _gave_up(self, reader: _Reader, job: _BatchRead) -> bool:
        """Give up the item that `reader` is reading if it takes too long; returns whether it does."""
        item = reader.item
        if item is None or item.job is not job or item.clock.left_s() > 0:
            return False
        text = f"no answer within {self._settings.read_timeout:g} s while reading {item.item.uri!r}"
        reject = Reject(status="timeout", error=text)
        if not job.settle(item.position, reject):
            return False
        if job.refusals is not None and item.clock.host is not None:
            error = RemoteError("timeout", text, cause="unreachable")
            job.refusals.note(item.item, item.clock.host, item.clock.begun, reject, error)
        return True


class _BatchRead:
    """The items of a batch, which readers take one by one."""

    def __init__(
        self, items: tuple[Item | None, ...], count: Callable[[], None], refusals: Refusals | None = None
    ) -> None:
        """count: called for each item that has been read or given up."""
        self.items, self.refusals = items, refusals
        self.waiting = deque(position for position, item in enumerate(items) if item is not None)
        self.done = threading.Event()
        self._slots: list[Encoded | Picture | Reject | None] = [None] * len(items)
        self._open = set(self.waiting)
        self._failure: BaseException | None = None
        self._lock, self._count = threading.Lock(), count
        if not self._open:
            self.done.set()

    def settle(self, position: int, outcome: Encoded | Picture | Reject) -> bool:
        """Fill the slot if it is empty; returns whether it was."""
        with self._lock:
            if position not in self._open:
                return False
            self._open.remove(position)
            self._slots[position] = outcome
            if not self._open:
                self.done.set()
        self._count()
        return True

    def fail(self, error: BaseException) -> None:
        """End the job with an exception: the run stops, or this is a bug."""
        self._failure = error
        self.done.set()

    def result(self) -> tuple[Encoded | Picture | Reject | None, ...]:
        """The slots. Only to be called once: a reader that was left behind then keeps none of them in memory."""
        if self._failure is not None:
            raise self._failure
        slots, self._slots = tuple(self._slots), []
        return slots


class _InHand(NamedTuple):
    """The item that a reader is reading. A tuple: one is made for each image, and that takes the least time."""

    job: _BatchRead
    position: int
    item: Item
    clock: Clock


class _Reader:
    """A daemon thread that takes part in one job after another."""

    def __init__(self, fetch: Fetch, idle: deque[_Reader]) -> None:
        # None ends the thread.
        self.jobs: queue.SimpleQueue[_BatchRead | None] = queue.SimpleQueue()
        self.item: _InHand | None = None
        self._fetch, self._idle = fetch, idle
        self.thread = threading.Thread(target=self._loop, name="reader", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None and self._finish(job):
            self.item = None
            del job  # else it would keep its batch in memory until the next one
            self._idle.append(self)

    def _finish(self, job: _BatchRead) -> bool:
        """Read items of `job` until none is left; returns False if another reader has taken this one's place."""
        fetch, items, waiting = self._fetch, job.items, job.waiting
        while True:
            try:
                position = waiting.popleft()
            except IndexError:
                return True
            item = items[position]
            assert item is not None
            clock = fetch.clock(item)
            self.item = _InHand(job, position, item, clock)
            try:
                outcome = item.reject or item.content or fetch(item, clock, job.refusals)
            except BaseException as error:
                job.fail(error)
                return False
            if not job.settle(position, outcome):
                return False
