"""Many callers' images -> shared batches. Knows nothing of images, of models or of event loops.

Threads take turns at collecting a batch, until enough images wait or no more come; then each works on its own, while
the next one collects. What waits is shared with the threads that are idle too: with a full batch for one and none for
the others, all callers would be answered, and ask again, at once, and the threads be idle in between. Images wait in
the order in which they came, so nobody is passed over.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

# A batch of this part of the full one wastes little.
ENOUGH = 4
# How long a batch waits for the next image.
LINGER_S = 0.002
# How long it waits for all of them.
PATIENCE_S = 0.02


class Batcher:
    """Calls `work` with a list of entries, and gives each caller the rows of its own."""

    def __init__(self, work: Callable[[list[Any]], pa.Table], *, size: int, threads: int) -> None:
        """work: makes a row of each entry, in order; called by `threads` threads at a time with at most `size`
        entries."""
        self._work, self._size, self._idle = work, size, threads
        self._waiting: collections.deque[tuple[_Request, int, Any]] = collections.deque()
        self._changed, self._turn, self._closed = threading.Condition(), threading.Lock(), False
        self._threads = [
            threading.Thread(target=self._loop, name=f"batcher-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, entries: Sequence[Any]) -> Future[pa.Table]:
        """The rows of `entries`, one or more, in order; fails as `work` does. Raises: RuntimeError once closed."""
        request = _Request(len(entries))
        with self._changed:
            if self._closed:
                raise RuntimeError("it is closed, and takes nothing more")
            self._waiting.extend((request, number, entry) for number, entry in enumerate(entries))
            self._changed.notify_all()
        return request.future

    def close(self) -> None:
        """Take nothing more, and return when all that was taken is answered."""
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
            while at < len(batch):  # a caller's entries stand together
                request, number, _ = batch[at]
                end = at
                while end < len(batch) and batch[end][0] is request:
                    end += 1
                request.deliver(number, table.slice(at, end - at))
                at = end

    def _collect(self) -> list[tuple[_Request, int, Any]]:
        """The next batch; empty when it is closed and nothing waits."""
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
    """One caller's entries, which may be spread over batches."""

    def __init__(self, entries: int) -> None:
        self.future: Future[pa.Table] = Future()
        self.future.set_running_or_notify_cancel()  # from now on nobody can cancel it, so it can always be answered
        self._left, self._pieces, self._lock = entries, dict[int, pa.Table](), threading.Lock()

    def deliver(self, number: int, rows: pa.Table) -> None:
        """rows: of the entries from `number` on."""
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
