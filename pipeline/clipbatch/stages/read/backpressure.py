"""Limit the encoded bytes in memory: hold batches back while those in progress reach the limit.

Cannot deadlock: batches are admitted whole and in order, and with nothing in progress the next one is always admitted.
Until a batch has been read, its size is an estimate.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator

from clipbatch.config import hardware
from clipbatch.types import Encoded, ItemBatch, ReadBatch

# Estimated size of an image before the first batch has been read.
_FIRST_ESTIMATE_BYTES = 2**20


def limit_bytes() -> int:
    """1 GiB, up to 4 GiB on large machines: room to read 256 camera files of 4 MB while another batch is decoded."""
    return min(2**32, max(2**30, hardware.memory_bytes() // 32))


class Backpressure:
    """Between the listing and the read stage. The read stage reports a batch's size, the decode stage its end."""

    def __init__(self, max_bytes: int | None = None) -> None:
        """max_bytes: the limit; None for `limit_bytes`."""
        self._limit_bytes, self._estimate_bytes = max_bytes or limit_bytes(), float(_FIRST_ESTIMATE_BYTES)
        self._in_progress: dict[int, float] = {}
        self._changed = threading.Condition()

    def admit(self, batches: Iterable[ItemBatch]) -> Iterator[ItemBatch]:
        """Yield `batches`, each as soon as there is room for it."""
        for batch in batches:
            wanted = sum(item is not None for item in batch.items)
            with self._changed:
                while self._in_progress and self._held() + wanted * self._estimate_bytes > self._limit_bytes:
                    self._changed.wait()
                self._in_progress[batch.start] = wanted * self._estimate_bytes
            yield batch

    def measured(self, batch: ReadBatch) -> None:
        """Note that `batch` has been read, and its size. The estimate rises to the mean size at once, and falls to it
        by halves."""
        sizes = [len(slot.data) for slot in batch.slots if isinstance(slot, Encoded)]
        with self._changed:
            if batch.source.start in self._in_progress:
                self._in_progress[batch.source.start] = sum(sizes)
            if sizes:
                mean = sum(sizes) / len(sizes)
                self._estimate_bytes = max(mean, (self._estimate_bytes + mean) / 2)
            self._changed.notify_all()

    def release(self, batch: ReadBatch) -> None:
        """Note that the bytes of `batch` are no longer needed."""
        with self._changed:
            self._in_progress.pop(batch.source.start, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Admit everything from now on: no stage works any more that could make room."""
        with self._changed:
            self._limit_bytes = sys.maxsize
            self._changed.notify_all()

    def _held(self) -> float:
        return sum(self._in_progress.values())
