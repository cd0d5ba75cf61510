"""Stamps: what a file looked like, as an increment keeps it in a row. That is its size and time, or a digest.

The column `file_modified` cannot hold times before 1677-09-21 or after 2262-04-11. For such a file it is null, and a
digest of the contents takes its place. The file then counts as changed only when its contents change.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.rundir.schema import STAMPS
from clipbatch.storage.atomic import sha256_of
from clipbatch.storage.uris import is_url, path_of
from clipbatch.workers import signals

_THREADS = 16
_CHUNK_BYTES = 2**20
# The latest time, in nanoseconds, that the column holds. The earliest is its negative: one less is numpy's NaT.
_MAX_TIME_NS = 2**63 - 1

# The values of `STAMPS`: bytes, nanoseconds since 1970, sha256. All None: no such file, or in a store or on the web.
Stamp = tuple["int | None", "int | None", "str | None"]


class Stamper:
    """Adds stamps to the rows of a listing. For one thread; used as a context manager."""

    def __init__(self, *, hash_contents: bool) -> None:
        """hash_contents: stamp every file with a digest instead of its size and time."""
        self._stamp: Callable[[str], Stamp] = _digest_of_file if hash_contents else _size_and_time
        self._pool = ThreadPoolExecutor(_THREADS)
        self._last: dict[str, Stamp] = {}
        # The first file whose time does not fit into the column, and how many there are.
        self._odd: list[str] = []
        self._odd_count = 0

    def __enter__(self) -> Stamper:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def stamped(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with the additional columns `STAMPS`."""
        rows = files_of(batch)
        new = [path for path in dict.fromkeys(rows) if path not in self._last]  # many rows may share an archive
        stamps = self._last | dict(zip(new, self._pool.map(self._stamp, new), strict=True))
        self._note_odd(new, stamps)
        self._last = {path: stamps[path] for path in rows[-1:]}
        values = zip(*(stamps[path] for path in rows), strict=True) if rows else ([] for _ in STAMPS)
        columns = [pa.array(column, field.type) for column, field in zip(values, STAMPS, strict=True)]
        return pa.record_batch([*batch.columns, *columns], schema=pa.schema([*batch.schema, *STAMPS]))

    def notes(self) -> list[str]:
        """Remarks on the files stamped so far."""
        if not self._odd:
            return []
        return [
            f"files whose time is before 1677 or after 2262, so that their contents are compared: "
            f"{self._odd_count}, the first is {self._odd[0]!r}"
        ]

    def _note_odd(self, paths: list[str], stamps: dict[str, Stamp]) -> None:
        odd = [path for path in paths if stamps[path][0] is not None and stamps[path][1] is None]
        self._odd = self._odd or odd[:1]
        self._odd_count += len(odd)


def files_of(batch: pa.RecordBatch) -> list[str]:
    """The file of each row of a listing or manifest. For a member of an archive or table: that archive or table."""
    spans = batch["span"]
    containers = spans.field("container").to_pylist() if spans.null_count < len(spans) else [None] * len(spans)
    uris, roots = batch["uri"].to_pylist(), batch["root"].to_pylist()
    return [path_of(inside or uri, root) for inside, uri, root in zip(containers, uris, roots, strict=True)]


def hashes(batch: pa.RecordBatch, missing: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row, a hash of its name and one of its stamp. They are comparable only within this process.

    missing: the rows whose file did not exist when it was to be read. Their stamp is ignored: if the file comes back
    unchanged, it still has to be labelled.
    """
    names = zip(files_of(batch), batch["uri"].to_pylist(), strict=True)
    digests = batch["file_sha256"].to_pylist()
    sizes, times = batch["file_bytes"].to_pylist(), batch["file_modified"].cast(pa.int64()).to_pylist()
    stamps = (
        (None, None) if gone else digest or (size, time)
        for gone, digest, size, time in zip(missing.tolist(), digests, sizes, times, strict=True)
    )
    count = batch.num_rows
    return np.fromiter(map(hash, names), np.int64, count), np.fromiter(map(hash, stamps), np.int64, count)


def _size_and_time(path: str) -> Stamp:
    if not is_url(path):
        # A file that does not exist gets a row with status missing, and is labelled when it appears.
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            if abs(status.st_mtime_ns) <= _MAX_TIME_NS:
                return status.st_size, status.st_mtime_ns, None
            return status.st_size, None, _digest_of_file(path)[2]
    return None, None, None


def _digest_of_file(path: str) -> Stamp:
    if not is_url(path):
        with contextlib.suppress(OSError, ValueError):
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for its writer
                return None, None, None
            with open(path, "rb") as file:
                return None, None, sha256_of(file, between=signals.check)
    return None, None, None
