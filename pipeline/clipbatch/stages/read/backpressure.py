"""Hold batches back while those under way hold as many encoded bytes as may lie in memory.

Batches are let in whole and in order, and one is let in whenever none is under way, so waiting always ends: whatever
holds bytes needs nothing that is still outside. What a batch will hold is guessed until it has been read.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator

from clipbatch.config import hardware
from clipbatch.types import Encoded, ItemBatch, ReadBatch

_FIRST_GUESS_BYTES = 2**20


def limit_bytes() -> int:
    """1 GiB, and up to 4 on large machines: camera files of 4 MB, 256 a batch, are to be read while others decode."""
    return min(2**32, max(2**30, hardware.memory_bytes() // 32))


class Backpressure:
    """Between the listing and the read stage; told by whoever reads a batch, and by whoever has no more use for it."""

    def __init__(self, most_bytes: int | None = None) -> None:
        """most_bytes: None for `limit_bytes`."""
        self._limit_bytes, self._guess_bytes = most_bytes or limit_bytes(), float(_FIRST_GUESS_BYTES)
        self._under_way: dict[int, float] = {}
        self._changed = threading.Condition()

    def admit(self, batches: Iterable[ItemBatch]) -> Iterator[ItemBatch]:
        """`batches`, each as soon as there is room for it."""
        for batch in batches:
            wanted = sum(item is not None for item in batch.items)
            with self._changed:
                while self._under_way and self._held() + wanted * self._guess_bytes > self._limit_bytes:
                    self._changed.wait()
                self._under_way[batch.start] = wanted * self._guess_bytes
            yield batch

    def measured(self, batch: ReadBatch) -> None:
        """Its bytes are in memory, and are known now. A guess that was too low is mended at once, one that was too
        high by halves."""
        sizes = [len(slot.data) for slot in batch.slots if isinstance(slot, Encoded)]
        with self._changed:
            if batch.source.start in self._under_way:
                self._under_way[batch.source.start] = sum(sizes)
            if sizes:
                mean = sum(sizes) / len(sizes)
                self._guess_bytes = max(mean, (self._guess_bytes + mean) / 2)
            self._changed.notify_all()

    def release(self, batch: ReadBatch) -> None:
        """Nobody needs its bytes any more."""
        with self._changed:
            self._under_way.pop(batch.source.start, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Let everything through: nobody works any more who would make room."""
        with self._changed:
            self._limit_bytes = sys.maxsize
            self._changed.notify_all()

    def _held(self) -> float:
        return sum(self._under_way.values())
