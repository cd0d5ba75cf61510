"""Which rows of a dataset of increments are the latest of their image, kept in two small tables beside the increments.

    dataset/latest.parquet     the latest row of each image: uri, increment, part, row_id
    dataset/deleted.parquet    latest rows of images that are gone (`--mark-deleted`); `latest.parquet` lacks them

The latest rows of an image are those in the last increment that has it. `latest.parquet` follows from the increments
and from `deleted.parquet`. Its footer says from which ones it was made; if they are others now, it is made again. What
`deleted.parquet` says follows from nothing else, so it is refused if it is damaged.

An image is where it is: the path of its file, with links in the path of its folder resolved, or the archive or table
and its name there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.errors import InputError, reading_failed
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir, part_name
from clipbatch.rundir.part_file import PartFile, rows_per_group
from clipbatch.rundir.schema import LISTING, STAMPS, WORDS
from clipbatch.runs.copying import regrouped
from clipbatch.runs.stamps import Folders, files_of, name_hashes
from clipbatch.storage.atomic import file_sha256
from clipbatch.storage.paths import parquet_source
from clipbatch.workers import signals

LATEST, DELETED = "latest.parquet", "deleted.parquet"
# Columns of a manifest that are not carried from the input.
OWN = ("row_id", "uri", *LISTING, *(field.name for field in STAMPS))
_STATE = b"clipbatch.increments"
_INDEX = pa.schema([("uri", pa.string()), ("increment", WORDS), ("part", WORDS), ("row_id", pa.int64())])
_TIME = pa.timestamp("us", "UTC")
_TOMBSTONES = pa.schema([("uri", pa.string()), ("increment", WORDS), ("row_id", pa.int64()), ("marked", _TIME)])
_REMEDIES = {
    LATEST: "remove it; the next night makes it again",
    DELETED: "restore it from a backup, or remove it; --mark-deleted then marks anew what is gone",
}
_ROW_BYTES = 200  # of a row of either table, about


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest rows of `increments`. Rows have numbers, from 0 on through all increments."""

    increments: Sequence[Path]
    # Rows of each increment.
    sizes: Sequence[int]
    # Of each latest row: a hash of its name, and its number.
    names: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @property
    def starts(self) -> dict[str, int]:
        """The number of the first row of each increment, by name."""
        starts = np.cumsum([0, *self.sizes]).tolist()
        return {path.name: start for path, start in zip(self.increments, starts, strict=False)}

    def mask(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each row of all increments, whether its number is in `numbers`."""
        mask = np.zeros(sum(self.sizes), bool)
        mask[numbers] = True
        return mask

    def with_increment(self, path: Path) -> Latest:
        """The latest rows with one more increment, which is the last."""
        added = _names(path, Folders())
        numbers = np.arange(sum(self.sizes), sum(self.sizes) + len(added))
        ordered = np.sort(added)
        kept = ordered[np.searchsorted(ordered[:-1], self.names)] != self.names if len(added) else slice(None)
        names, numbers = np.append(self.names[kept], added), np.append(self.numbers[kept], numbers)
        return Latest([*self.increments, path], [*self.sizes, len(added)], names, numbers)


def latest(increments: Sequence[Path]) -> Latest:
    """The latest rows of `increments`, all of which are complete, oldest first."""
    folders = Folders()
    names = [np.empty(0, np.int64), *(_names(path, folders) for path in increments)]
    sizes = [len(its) for its in names[1:]]
    return Latest(increments, sizes, *latest_rows(np.concatenate(names), sizes))


def latest_rows(names: NDArray[np.int64], sizes: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The names and numbers of the rows that are in the last increment with their name, sorted by name and number.

    names: a hash for each row of all increments. sizes: rows of each increment.
    """
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    increment = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
    last = np.searchsorted(ordered, ordered, side="right") - 1
    keep = increment == increment[last]
    return ordered[keep], order[keep]


def _names(path: Path, folders: Folders) -> NDArray[np.int64]:
    """A hash of the name of each row of an increment."""
    run = RunDir(path)
    batches = manifest(run, run.plan(), ["uri", *LISTING])
    return np.concatenate([np.empty(0, np.int64), *(name_hashes(batch, folders) for batch in batches)])


def manifest_schema(path: Path) -> pa.Schema:
    """The columns of an increment's manifest. Raises: InputError if it was not made by `--incremental`."""
    run = RunDir(path)
    names = sorted(run.plan().manifest_sha256)
    if not names:
        return pa.schema(STAMPS)
    file = run.manifest / names[0]
    try:
        with open(path / run.manifest.name / names[0], "rb") as opened:
            schema = pq.read_schema(opened)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error
    absent = [field.name for field in STAMPS if field.name not in schema.names]
    if absent:
        raise InputError(
            f"{run.path} was not made with --incremental, as {file} has no column {absent[0]}: move it to another "
            "folder"
        )
    return schema


def manifest(run: RunDir, plan: Plan, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of an increment's manifest. Raises: InputError if the manifest has changed or cannot be read."""
    for name, digest in sorted(plan.manifest_sha256.items()):
        path = run.manifest / name
        try:
            if file_sha256(path) != digest:
                raise InputError(f"the manifest {path} was changed after the run was planned: {_REMEDY}")
            with pq.ParquetFile(parquet_source(path)) as file:
                for batch in file.iter_batches(columns=list(columns)):
                    signals.check()
                    yield batch.select([name for name in columns if name in batch.schema.names])
        except OSError as error:
            raise _unreadable(path, error) from error


_REMEDY = "restore it, or delete the increment; images that only it had are labelled again then"


def _unreadable(path: object, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot read the manifest {path}: {reason}; {_REMEDY}")


def read_deleted(folder: Path, rows: Latest) -> NDArray[np.int64]:
    """The numbers of the latest rows whose image is marked as deleted. Raises: InputError if the table is damaged."""
    path = folder / DELETED
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return np.empty(0, np.int64)
    if not verify_file(data):
        raise InputError(f"{path} is damaged: {_REMEDIES[DELETED]}")
    table = pq.read_table(pa.BufferReader(data), columns=["increment", "row_id"])
    starts, sizes = rows.starts, {path.name: size for path, size in zip(rows.increments, rows.sizes, strict=True)}
    numbers = [
        starts[increment] + row_id
        for increment, row_id in zip(table["increment"].to_pylist(), table["row_id"].to_pylist(), strict=True)
        if row_id < sizes.get(increment, 0)
    ]
    unique = np.unique(np.array(numbers, np.int64))
    return unique[rows.mask(rows.numbers)[unique]]


def damaged_tables(folder: Path) -> list[tuple[str, str]]:
    """The tables of a dataset that are there and not whole: what to say of each, and the remedy. Raises: InputError if
    one cannot be read."""
    damaged = []
    for path in (folder / name for name in _REMEDIES):
        try:
            if path.exists() and not verify_file(path.read_bytes()):
                damaged.append((f"{path}: damaged", _REMEDIES[path.name]))
        except OSError as error:
            raise reading_failed(str(path), error) from error
    return damaged


def write_deleted(folder: Path, rows: Latest, numbers: NDArray[np.int64]) -> None:
    """Write `deleted.parquet` with the rows of these numbers, unless it has just these. Rows that it has already keep
    the time at which they were marked."""
    before = read_deleted(folder, rows)
    path, numbers = folder / DELETED, np.unique(numbers)
    rows_there = pq.read_metadata(parquet_source(path)).num_rows if path.exists() else 0
    if np.array_equal(before, numbers) and rows_there == len(numbers):  # it has no rows that are not the latest now
        return
    marked = _marked(folder)
    now = datetime.datetime.now(datetime.UTC)
    mask = rows.mask(numbers)
    with PartFile(path, _TOMBSTONES, "zstd") as file:
        for _, name, batch in _rows(rows, mask):
            row_ids = batch["row_id"].to_pylist()
            times = pa.array([marked.get((name, row_id), now) for row_id in row_ids], _TIME)
            columns = [batch["uri"], _words(np.zeros(len(batch), np.int32), [name]), batch["row_id"], times]
            file.write(pa.Table.from_arrays(columns, schema=_TOMBSTONES))
        file.close({})


def _marked(folder: Path) -> Mapping[tuple[str, int], datetime.datetime]:
    if not (folder / DELETED).exists():
        return {}
    table = pq.read_table(folder / DELETED)
    keys = zip(table["increment"].to_pylist(), table["row_id"].to_pylist(), strict=True)
    return dict(zip(keys, table["marked"].to_pylist(), strict=True))


def write_latest(folder: Path, rows: Latest) -> None:
    """Write `latest.parquet`: the latest rows without those that are marked as deleted."""
    mask = rows.mask(rows.numbers)
    mask[read_deleted(folder, rows)] = False
    with PartFile(folder / LATEST, _INDEX, "zstd") as file:
        for table in regrouped(_index(rows, mask), rows_per_group(_ROW_BYTES)):
            file.write(table)
        file.close({_STATE.decode(): _state(folder, rows.increments)})


def is_fresh(folder: Path, increments: Sequence[Path]) -> bool:
    """Whether `latest.parquet` is whole, and was made from these increments and from `deleted.parquet` as it is."""
    path = folder / LATEST
    try:
        footer = pq.read_metadata(parquet_source(path)).metadata or {}
        return footer.get(_STATE) == _state(folder, increments).encode() and verify_file(path.read_bytes())
    except (OSError, pa.ArrowException):
        return False


def _state(folder: Path, increments: Iterable[Path]) -> str:
    """From what `latest.parquet` is made: the fingerprint of each increment's plan, and a digest of the tombstones."""
    path = folder / DELETED
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
    return json.dumps({**{its.name: RunDir(its).plan().fingerprint for its in increments}, DELETED: digest})


def _index(rows: Latest, mask: NDArray[np.bool_]) -> Iterator[pa.Table]:
    for plan, name, batch in _rows(rows, mask):
        shards, which = np.unique(batch["row_id"].to_numpy() // plan.shard_size, return_inverse=True)
        parts = [f"{name}/parts/{part_name(shard, plan.shards)}" for shard in shards.tolist()]
        increment = _words(np.zeros(len(batch), np.int32), [name])
        columns = [batch["uri"], increment, _words(which.astype(np.int32), parts), batch["row_id"]]
        yield pa.Table.from_arrays(columns, schema=_INDEX)


def files(rows: Latest, numbers: NDArray[np.int64]) -> Iterator[str]:
    """The file of each row of these numbers, as `files_of` gives it."""
    for _, _, batch in _rows(rows, rows.mask(numbers), ["row_id", "uri", *LISTING]):
        yield from files_of(batch)


def _rows(
    rows: Latest, mask: NDArray[np.bool_], columns: Sequence[str] = ("row_id", "uri")
) -> Iterator[tuple[Plan, str, pa.RecordBatch]]:
    """The rows that `mask` names: the plan and name of an increment, and a batch of its rows with `columns`."""
    for path, start, size in zip(rows.increments, rows.starts.values(), rows.sizes, strict=True):
        its = mask[start : start + size]
        if not its.any():
            continue
        run = RunDir(path)
        plan = run.plan()
        for batch in manifest(run, plan, columns):
            wanted = batch.filter(pa.array(its[batch["row_id"].to_numpy()]))
            if wanted.num_rows:
                yield plan, path.name, wanted


def _words(indices: NDArray[np.int32], words: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(words, pa.string()))
