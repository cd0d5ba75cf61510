"""Which batches a worker has between decode and done, in memory that outlives the worker.

The supervisor makes the memory and passes its descriptor on; when a worker has died, what is noted there are the rows
that may have killed it. Written at two points of a batch's way, 16 bytes each time, without a system call.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading

from clipbatch.config import hardware

_ENTRY = struct.Struct("<qq")


class Journal:
    """A table of (first row, rows) in shared memory; rows 0: an unused entry."""

    def __init__(self, fd: int | None = None) -> None:
        """fd: of the supervisor's journal; None to make one."""
        self.fd = _made() if fd is None else fd
        if fd is None:  # the flow holds about two batches a core, and a dozen
            os.ftruncate(self.fd, _ENTRY.size * max(256, 8 * hardware.cores()))
        self._memory = mmap.mmap(self.fd, 0)
        self._lock = threading.Lock()
        self._entries: dict[int, int] = {}
        self._free = list(range(len(self._memory) // _ENTRY.size))

    def enter(self, start: int, rows: int) -> None:
        """Note that the batch of `rows` rows from `start` on is on its way."""
        with self._lock:
            entry = self._entries[start] = self._free.pop()
        _ENTRY.pack_into(self._memory, entry * _ENTRY.size, start, rows)

    def leave(self, start: int) -> None:
        """Note that the batch from `start` on is done."""
        with self._lock:
            entry = self._entries.pop(start)
            _ENTRY.pack_into(self._memory, entry * _ENTRY.size, 0, 0)
            self._free.append(entry)

    def in_flight(self) -> list[int]:
        """The row_ids of all batches on their way."""
        entries = [
            _ENTRY.unpack_from(self._memory, entry * _ENTRY.size) for entry in range(len(self._memory) // _ENTRY.size)
        ]
        return sorted(row for start, rows in entries for row in range(start, start + rows))

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


def _made() -> int:
    """New memory, under a number that no standard stream has: where the caller closed these, theirs are free, and the
    worker's pipes would take its place."""
    fd = os.memfd_create("clipbatch-journal")
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
