"""Items -> encoded bytes, by reads that may fail, hang or lie. Knows nothing of images.

A few readers share each batch, one item at a time; the flow has many such batches read at once. An item that does not
answer within the time limit is given up on: its reader, a thread that no signal can free, is left behind as a daemon,
and another one takes its place.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from clipbatch.config import ReadSettings
from clipbatch.stages.read.fetch import Fetch
from clipbatch.storage.uris import is_url
from clipbatch.types import Encoded, Item, ItemBatch, Picture, ReadBatch, Reject

LOCAL_READS = 16
"""At the same time, from file systems."""
_END_S = 5.0
"""For a thread that has nothing to do, to end."""
REMOTE_READS = 64
"""At the same time, from stores and the web, where a read is a wait: of 50 ms, they hide it up to 1000 images/s."""


class Read:
    """The read stage."""

    def __init__(self, settings: ReadSettings, batches: int = 1) -> None:
        """batches: how many of them may be read at the same time, which sets what lies in memory."""
        self.batches = min(batches, settings.read_threads or batches)
        self._settings = settings
        self._fetch = Fetch(settings)
        self._idle: deque[_Reader] = deque()
        self._readers: list[_Reader] = []
        self._changing = threading.Lock()
        self.files = 0
        """Files done with so far, read or given up: a sign of life while no batch comes through."""

    def __call__(self, batch: ItemBatch) -> ReadBatch:
        """Read every item of `batch`; each slot gets its bytes or the reason why there are none."""
        job = _BatchRead(batch.items, self._count)
        readers = [self._start(job) for _ in range(min(self._share(batch), len(job.waiting)))]
        while not job.done.wait(self._patience_s(readers, job)):
            for reader in [reader for reader in readers if self._gave_up(reader, job)]:
                readers.remove(reader)
                if job.waiting:
                    readers.append(self._start(job))
        return ReadBatch(source=batch, slots=job.result())

    def forget(self) -> None:
        """Forget which archives and tables were open: to be called before each run, since they may have changed."""
        self._fetch.forget()

    def close(self) -> None:
        """End the threads; to be called when no batch is being read. Does not wait for one that hangs in a file."""
        with self._changing:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.jobs.put(None)
        for reader in readers:
            if reader.item is None:
                reader.thread.join(_END_S)
        self._idle.clear()

    def _share(self, batch: ItemBatch) -> int:
        """Readers of one batch, so that all batches together have as many as they should."""
        reads = self._settings.read_threads
        if reads is None:
            remote = any(item is not None and is_url(item.path) for item in batch.items)
            reads = REMOTE_READS if remote else LOCAL_READS
        return math.ceil(reads / self.batches)

    def _count(self) -> None:
        self.files += 1  # two threads at once may count one: that it moves is enough

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
        """Until the first of `readers` may have taken too long."""
        now = time.monotonic()
        begun = min((item.begun for reader in readers if (item := reader.item) and item.job is job), default=now)
        return max(begun + self._settings.read_timeout - now, 0.001)

    def _gave_up(self, reader: _Reader, job: _BatchRead) -> bool:
        """Give up on the item in hand of `reader` if it takes too long."""
        item, limit_s = reader.item, self._settings.read_timeout
        if item is None or item.job is not job or time.monotonic() - item.begun < limit_s:
            return False
        error = f"no answer within {limit_s:g} s while reading {item.uri!r}"
        return job.settle(item.position, Reject(status="timeout", error=error))


class _BatchRead:
    """The items of a batch, taken by readers one by one."""

    def __init__(self, items: tuple[Item | None, ...], count: Callable[[], None]) -> None:
        """count: called for each item that is done with."""
        self.items = items
        self.waiting = deque(position for position, item in enumerate(items) if item is not None)
        self.done = threading.Event()
        self._slots: list[Encoded | Picture | Reject | None] = [None] * len(items)
        self._open = set(self.waiting)
        self._failure: BaseException | None = None
        self._lock, self._count = threading.Lock(), count
        if not self._open:
            self.done.set()

    def settle(self, position: int, outcome: Encoded | Picture | Reject) -> bool:
        """Fill the slot, unless it is filled already; whether it was not."""
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
        """End the job, by a bug of ours."""
        self._failure = error
        self.done.set()

    def result(self) -> tuple[Encoded | Picture | Reject | None, ...]:
        """The slots, once; a reader that was left behind then keeps none of them alive."""
        if self._failure is not None:
            raise self._failure
        slots, self._slots = tuple(self._slots), []
        return slots


@dataclass(frozen=True, slots=True, kw_only=True)
class _InHand:
    """The item that a reader is at."""

    job: _BatchRead
    position: int
    uri: str
    begun: float
    """time.monotonic()"""


class _Reader:
    """A daemon thread that takes part in one job after another."""

    def __init__(self, fetch: Fetch, idle: deque[_Reader]) -> None:
        self.jobs: queue.SimpleQueue[_BatchRead | None] = queue.SimpleQueue()
        """None: there is no more."""
        self.item: _InHand | None = None
        self._fetch, self._idle = fetch, idle
        self.thread = threading.Thread(target=self._loop, name="reader", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None and self._does(job):
            self.item = None
            del job  # else its batch lives until the next one
            self._idle.append(self)

    def _does(self, job: _BatchRead) -> bool:
        """Read items of `job` until none is left; False where another reader has taken this one's place."""
        while True:
            try:
                position = job.waiting.popleft()
            except IndexError:
                return True
            item = job.items[position]
            assert item is not None
            self.item = _InHand(job=job, position=position, uri=item.uri, begun=time.monotonic())
            try:
                outcome = item.reject or item.given or self._fetch(item)
            except BaseException as error:
                job.fail(error)
                return False
            if not job.settle(position, outcome):
                return False
