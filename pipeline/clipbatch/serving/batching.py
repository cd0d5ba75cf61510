"""Puts the images of many callers into shared batches. It knows nothing about images, models or event loops.

Threads take turns at collecting a batch. A thread stops collecting when enough images wait or no more arrive. Then it
works on its batch while the next thread collects. A thread leaves a share of the waiting images to the other idle
threads. If one thread took them all, all callers would get their answers, and send their next requests, at the same
moment, and the threads would be idle in between. Images wait in the order of their arrival.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

# A thread stops waiting for images when its batch has this fraction (1/4) of the full size.
ENOUGH = 4
# How long a thread waits for the next image, seconds.
LINGER_S = 0.002
# How long it waits for a batch in all, seconds.
PATIENCE_S = 0.02


class Batcher:
    """Calls `work` with lists of entries, and gives each caller the rows of its own entries."""

    def __init__(self, work: Callable[[list[Any]], pa.Table], *, size: int, threads: int) -> None:
        """work: returns a table with a row for each entry, in order. `threads` threads call it at the same time, each
        with at most `size` entries."""
        self._work, self._size, self._idle = work, size, threads
        self._waiting: collections.deque[tuple[_Request, int, Any]] = collections.deque()
        self._changed, self._turn, self._closed = threading.Condition(), threading.Lock(), False
        self._threads = [
            threading.Thread(target=self._loop, name=f"batcher-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, entries: Sequence[Any]) -> Future[pa.Table]:
        """Queue `entries`, at least one. The future gets their rows, in order, or the exception of `work`.

        Raises: RuntimeError after `close`.
        """
        request = _Request(len(entries))
        with self._changed:
            if self._closed:
                raise RuntimeError("it has been closed and takes no more images")
            self._waiting.extend((request, number, entry) for number, entry in enumerate(entries))
            self._changed.notify_all()
        return request.future

    def close(self) -> None:
        """Take no more entries, and return when all entries that were taken have been answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while batch := self._collect():
            try:
                table = self._work([entry for _, _, entry in batch])
            except BaseException as error:
                for request in {id(request): request for request, _, _ in batch}.values():
                    request.fail(error)
                continue
            finally:
                with self._changed:
                    self._idle += 1
            at = 0
            while at < len(batch):  # the entries of a caller are next to each other
                request, number, _ = batch[at]
                end = at
                while end < len(batch) and batch[end][0] is request:
                    end += 1
                request.deliver(number, table.slice(at, end - at))
                at = end

    def _collect(self) -> list[tuple[_Request, int, Any]]:
        """The next batch. Empty if the batcher is closed and no entries wait."""
        with self._turn, self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            enough, until = self._size // ENOUGH, time.monotonic() + PATIENCE_S
            while len(self._waiting) < enough and not self._closed and (left := until - time.monotonic()) > 0:
                if not self._changed.wait(min(LINGER_S, left)):
                    break
            share = max(enough, -(-len(self._waiting) // self._idle))
            count = min(self._size, share, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(1 << (count.bit_length() - 1) if count else 0)]
            self._idle -= bool(batch)
            return batch


class _Request:
    """The entries of one caller, which may be in several batches."""

    def __init__(self, entries: int) -> None:
        self.future: Future[pa.Table] = Future()
        self.future.set_running_or_notify_cancel()  # now nobody can cancel it, so it can always be answered
        self._left, self._pieces, self._lock = entries, dict[int, pa.Table](), threading.Lock()

    def deliver(self, number: int, rows: pa.Table) -> None:
        """rows: those of the entries from `number` on."""
        with self._lock:
            self._pieces[number] = rows
            self._left -= rows.num_rows
            if self._left or self.future.done():
                return
            pieces = [self._pieces[first] for first in sorted(self._pieces)]
            self.future.set_result(pa.concat_tables(pieces))

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)
