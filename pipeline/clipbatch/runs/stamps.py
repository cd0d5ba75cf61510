"""Stamps: what a file looked like, as an increment keeps it in a row. That is its size and time, or a digest.

The column `file_modified` holds microseconds. It holds no times before 1677-09-21 or after 2262-04-11, which not every
reader takes. For such a file it is null, and a digest of the contents takes its place. The file then counts as changed
only when its contents change. In datasets of older versions the column holds nanoseconds, in new increments too, so
that all of a dataset has the same columns.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipbatch.rundir.duplicates import mixed, value_hashes
from clipbatch.rundir.schema import STAMPS
from clipbatch.storage.atomic import sha256_of
from clipbatch.storage.uris import is_data_uri, is_url, path_of
from clipbatch.workers import signals

_THREADS = 16
_MAX_DEPTH = 200
# The latest time, in nanoseconds, that the column holds; the earliest is its negative.
_MAX_TIME_NS = 2**63 - 1

# The values of `STAMPS`: bytes, nanoseconds since 1970, sha256. All None: no such file, or in a store or on the web.
Stamp = tuple["int | None", "int | None", "str | None"]


class Stamper:
    """Adds stamps to the rows of a listing. For one thread; used as a context manager."""

    def __init__(self, *, hash_contents: bool, columns: pa.Schema) -> None:
        """hash_contents: stamp every file with a digest instead of its size and time. columns: those of the dataset so
        far, whose types stay."""
        self._fields = [
            field if columns.get_field_index(field.name) < 0 else columns.field(field.name) for field in STAMPS
        ]
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
        rows = [path if uri else "" for path, uri in zip(files_of(batch), batch["uri"].to_pylist(), strict=True)]
        new = [path for path in dict.fromkeys(rows) if path not in self._last]  # many rows may share an archive
        stamps = self._last | dict(zip(new, self._pool.map(self._stamp, new), strict=True))
        self._note_odd(new, stamps)
        self._last = {path: stamps[path] for path in rows[-1:]}
        values = zip(*(stamps[path] for path in rows), strict=True) if rows else ([] for _ in STAMPS)
        sizes, times, digests = map(list, values)
        if self._fields[1].type.unit == "us":
            times = [None if time is None else time // 1000 for time in times]
        columns = [
            pa.array(column, field.type) for column, field in zip((sizes, times, digests), self._fields, strict=True)
        ]
        return pa.record_batch([*batch.columns, *columns], schema=pa.schema([*batch.schema, *self._fields]))

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
    rows = zip(_containers(batch), batch["uri"].to_pylist(), batch["root"].to_pylist(), strict=True)
    return [path_of(inside or uri, root) for inside, uri, root in rows]


def _containers(batch: pa.RecordBatch) -> list[str | None]:
    """For each row the name of its archive or table as the input has it; None for a file of its own."""
    spans = batch["span"]
    if spans.null_count == len(spans):
        return [None] * len(spans)
    names: list[str | None] = spans.field("container").to_pylist()
    return names


class Folders:
    """Resolves links in the folders of paths, so that a file has one name, however its folder was named."""

    def __init__(self) -> None:
        self._real = {"": ""}

    def real(self, path: str) -> str:
        """`path` with the links in its folder resolved. A url stays as it is."""
        if not path.startswith("/") and (is_url(path) or is_data_uri(path)):
            return path
        folder, slash, name = path.rpartition("/")
        return f"{self._folder(folder)}{slash}{name}"

    def _folder(self, folder: str) -> str:
        real = self._real.get(folder)
        if real is None:
            self._real[folder] = real = self._resolved(folder)
        return real

    def _resolved(self, folder: str) -> str:
        """One look at the disk for each folder, since there may be millions of them on a network disk."""
        above, _, name = folder.rpartition("/")
        if name in ("", "."):
            return self._folder(above)
        if name == ".." or folder.count("/") > _MAX_DEPTH:
            with contextlib.suppress(OSError, ValueError):
                return os.path.realpath(folder)
            return folder
        place = f"{self._folder(above)}/{name}"
        with contextlib.suppress(OSError, ValueError):
            os.readlink(place)
            return os.path.realpath(place)
        return place


def name_hashes(batch: pa.RecordBatch, folders: Folders) -> NDArray[np.int64]:
    """A hash of the name of each row: where its file is, and for a member of an archive or table, its name there. They
    are comparable only within this process."""
    rows = zip(files_of(batch), batch["uri"].to_pylist(), _containers(batch), strict=True)
    names = (
        hash(folders.real(path) if container is None else (folders.real(path), *_inside(uri, container)))
        for path, uri, container in rows
    )
    return np.fromiter(names, np.int64, batch.num_rows)


def _inside(uri: str, container: str) -> tuple[bool, str]:
    """The name of a member: whether its uri begins with the name of its container, and what it has beside that. The
    container may be named in several ways."""
    prefix = f"{container}#"
    return uri.startswith(prefix), uri.removeprefix(prefix)


def look_hashes(batch: pa.RecordBatch, columns: Sequence[str], missing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A hash of the look of each row: its stamp, and its values in `columns`.

    missing: the rows whose file did not exist when it was to be read. Their stamp is ignored: if the file comes back
    unchanged, it still has to be labelled.
    """
    digested = batch["file_sha256"].is_valid()
    gone = pa.array(missing)
    sized = pc.or_(digested, gone)
    times = batch["file_modified"]
    per_us = 1000 if times.type.unit == "ns" else 1
    micros = pa.array(times.cast(pa.int64()).fill_null(0).to_numpy() // per_us, mask=times.is_null().to_numpy(False))
    look = np.zeros(batch.num_rows, np.uint64)
    for values, ignored in ((batch["file_bytes"], sized), (micros, sized), (batch["file_sha256"], gone)):
        look = mixed(look, value_hashes(pc.if_else(ignored, pa.scalar(None, values.type), values)))
    for name in columns:
        look = mixed(look, value_hashes(batch[name]))
    return look.view(np.int64)


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
