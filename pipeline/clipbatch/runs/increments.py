"""Nightly increments: a dataset is a folder of runs, each over the images that were new or changed since the last one.

    dataset/increment-00001/    a run directory like any other, never touched again once it is complete
    dataset/increment-00002/    what was new or changed the next night

What a file looked like is kept in its row: `file_bytes` and `file_modified`, or `file_sha256`; null for what is in a
store or on the web, which goes by its name alone. Old rows stay, so an image that has changed has a row in several
increments, and the last one counts. One increment is made at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.config import ANEW, MOVED, PIXELS, Settings, from_flat
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.inputs import listing as listings
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import STAMPS
from clipbatch.runs import plan
from clipbatch.runs import run as runner
from clipbatch.storage.atomic import locked
from clipbatch.storage.paths import StorePath, place
from clipbatch.storage.uris import is_url, path_of
from clipbatch.workers import signals
from clipbatch.workers.progress import Progress

_NAME = re.compile(r"increment-\d{5,}")
_THREADS = 16
_CHUNK_BYTES = 2**20


class _NothingNewError(ClipbatchError):
    """The listing holds no row that is not known."""


@dataclass(slots=True, kw_only=True)
class Found:
    """How the listing compares with what is known, in rows."""

    new: int = 0
    changed: int = 0
    known: int = 0


def run(
    settings: Settings, out: str, *, hash_contents: bool = False, quiet: bool = False, log_json: bool = False
) -> dict[str, Any]:
    """Label what is new or changed in the input of `settings` since the increments in `out`, as one more of them.

    hash_contents: compare what files hold, which reads them all, in place of their size and time. An increment that was
    interrupted is finished first. Returns the report of the increment, with `increment`: its folder, None where
    there was nothing new, and how many rows were new, changed and known.
    Raises: BusyError where another process is at it; as `api.run` does.
    """
    folder = place(out)
    if isinstance(folder, StorePath):
        raise InputError(f"--incremental keeps its dataset on a disk: {out} is in a store; give a local --out")
    if not settings.source.inputs:
        raise InputError("--incremental compares an INPUT with what is known: name one")
    busy = f"another process is making an increment in {folder}: let it finish, and run the same command later"
    with locked(folder, busy):
        done = increments(folder)
        again = from_flat({name: value for name, value in settings.flat().items() if name in ANEW})
        if done and not runner.status(done[-1])["complete"]:
            runner.run(again, done[-1], quiet=quiet, log_json=log_json)
        known = _Known(done)
        target = folder / f"increment-{len(done) + 1:05d}"
        like = RunDir(done[-1]) if done else None
        try:
            plan.plan(settings, target, like=like, select=lambda listing: known.select(listing, hash_contents))
        except _NothingNewError:
            counts = {"folder": None, **_as_dict(known.found)}
            return {"increment": counts, "status": {}, "rows_done": 0}
        if like and like.plan().pixels != PIXELS:
            progress = Progress(total=0, done=0, bad=0, quiet=quiet, as_json=log_json)
            progress.say(f"the rules for pixels have changed since {done[-1]}: scores of these move: {MOVED}")
            progress.close()
        made = runner.run(again, target, quiet=quiet, log_json=log_json)
        return made | {"increment": {"folder": str(target), **_as_dict(known.found)}}


def increments(folder: Path) -> list[Path]:
    """The run directories of a dataset, the oldest first. Raises: InputError where `folder` holds something else."""
    names = sorted(os.listdir(folder))
    strangers = [name for name in names if not _NAME.fullmatch(name) and not name.startswith(".")]
    if strangers:
        raise InputError(
            f"{folder} holds {strangers[0]!r}, so it is no dataset of increments: choose a new or empty folder as --out"
        )
    found = [folder / name for name in names if _NAME.fullmatch(name)]
    return [path for path in found if RunDir(path).exists()]


def each(source: str, out: str) -> list[tuple[str, str]]:
    """The runs to make something of, and where: of the run `source` in `out`, of each increment of the dataset `source`
    in a folder of its name. Raises: InputError as `increments` does."""
    if not os.path.isdir(source) or RunDir(source).exists() or not any(map(_NAME.fullmatch, os.listdir(source))):
        return [(source, out)]
    return [(str(path), os.path.join(out, path.name)) for path in increments(Path(source))]


class _Known:
    """What the increments hold, as sorted 64-bit hashes: 16 bytes a row."""

    def __init__(self, done: list[Path]) -> None:
        self.found = Found()
        names, looks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for path in done:
            for file in sorted((path / "manifest").glob("part-*.parquet")):
                for batch in pq.ParquetFile(file).iter_batches():
                    signals.check()
                    name, look = _hashes(batch)
                    names.append(name)
                    looks.append(look)
        self._names, self._looks = np.unique(np.concatenate(names)), np.unique(np.concatenate(looks))

    def select(self, listing: listings.Listing, hash_contents: bool) -> Iterator[pa.RecordBatch]:
        """The listing's rows that are not known, with what their files look like now."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for batch in listing.batches():
                stamps = list(pool.map(_hash_file if hash_contents else _stat_file, _paths(batch)))
                columns = [
                    pa.array(column, f.type) for column, f in zip(zip(*stamps, strict=True), STAMPS, strict=True)
                ]
                stamped = pa.record_batch([*batch.columns, *columns], schema=pa.schema([*batch.schema, *STAMPS]))
                name, look = _hashes(stamped)
                fresh, old = ~_among(look, self._looks), _among(name, self._names)
                self.found.new += int((fresh & ~old).sum())
                self.found.changed += int((fresh & old).sum())
                self.found.known += int((~fresh).sum())
                yield stamped.filter(pa.array(fresh))
        if not self.found.new + self.found.changed:
            raise _NothingNewError("nothing is new or changed")


def _paths(batch: pa.RecordBatch) -> list[str]:
    """The file that each row is in; for a member of an archive or table, that one."""
    spans = batch["span"]
    containers = spans.field("container").to_pylist() if spans.null_count < len(spans) else [None] * len(spans)
    uris, roots = batch["uri"].to_pylist(), batch["root"].to_pylist()
    return [path_of(inside or uri, root) for inside, uri, root in zip(containers, uris, roots, strict=True)]


def _hashes(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row's name, and of its name and look together. Only comparable within this process."""
    names = list(zip(_paths(batch), batch["uri"].to_pylist(), strict=True))
    digests = batch["file_sha256"].to_pylist()
    sizes, times = batch["file_bytes"].to_pylist(), batch["file_modified"].cast(pa.int64()).to_pylist()
    looks = [digest or (size, time) for digest, size, time in zip(digests, sizes, times, strict=True)]
    name = np.fromiter(map(hash, names), np.int64, len(names))
    look = np.fromiter(map(hash, zip(names, looks, strict=True)), np.int64, len(names))
    return name, look


def _among(values: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.bool_]:
    at = np.searchsorted(ordered, values)
    return (at < len(ordered)) & (ordered[np.minimum(at, len(ordered) - 1)] == values) if len(ordered) else at < 0


def _stat_file(path: str) -> tuple[int | None, int | None, str | None]:
    if not is_url(path):
        with contextlib.suppress(OSError, ValueError):  # not there: its row will say so, and be tried again if it comes
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns, None
    return None, None, None


def _hash_file(path: str) -> tuple[int | None, int | None, str | None]:
    if not is_url(path):
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
            return None, None, digest.hexdigest()
    return None, None, None


def _as_dict(found: Found) -> dict[str, int]:
    return {"new": found.new, "changed": found.changed, "known": found.known}
