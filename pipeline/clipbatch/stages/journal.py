"""The journal: which batches a worker has in progress, in memory that outlives the worker.

When a worker dies, its supervisor needs to know which rows may have killed it. So the supervisor creates shared memory
and passes its file descriptor to the worker. The worker writes 16 bytes when a batch enters the decode stage and again
when it is written, without a system call.
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
    """A table in shared memory with entries (first row, number of rows). An entry with 0 rows is unused."""

    def __init__(self, fd: int | None = None) -> None:
        """fd: the descriptor of the supervisor's journal. None: create a journal."""
        self.fd = _create_memory() if fd is None else fd
        if fd is None:  # a flow holds about two batches for each core, and a dozen more
            os.ftruncate(self.fd, _ENTRY.size * max(256, 8 * hardware.cores()))
        self._memory = mmap.mmap(self.fd, 0)
        self._lock = threading.Lock()
        self._entries: dict[int, int] = {}
        self._free = list(range(len(self._memory) // _ENTRY.size))

    def enter(self, start: int, rows: int) -> None:
        """Note that the batch of `rows` rows from row_id `start` on is in progress."""
        with self._lock:
            entry = self._entries[start] = self._free.pop()
        _ENTRY.pack_into(self._memory, entry * _ENTRY.size, start, rows)

    def leave(self, start: int) -> None:
        """Note that the batch from row_id `start` on is done."""
        with self._lock:
            entry = self._entries.pop(start)
            _ENTRY.pack_into(self._memory, entry * _ENTRY.size, 0, 0)
            self._free.append(entry)

    def in_flight(self) -> list[int]:
        """The row_ids of all batches in progress."""
        entries = [
            _ENTRY.unpack_from(self._memory, entry * _ENTRY.size) for entry in range(len(self._memory) // _ENTRY.size)
        ]
        return sorted(row for start, rows in entries for row in range(start, start + rows))

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


def _create_memory() -> int:
    """A file descriptor of new memory, above those of the standard streams.

    If the caller closed the standard streams, their numbers are free. A journal must not get one of them, as the pipes
    of the worker would replace it.
    """
    fd = os.memfd_create("clipbatch-journal")
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
