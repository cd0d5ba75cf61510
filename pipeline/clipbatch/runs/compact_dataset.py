"""Copies the latest row of each image of a dataset of increments into a few large files, as `flat` does for a run.

Rows of images that are marked as deleted are left out. The rows follow each other as in the increments, and have one
more column, the name of their increment, since `row_id` counts within it. All files have the same columns: those of all
increments, with types that every reader takes. A column that an increment does not have is null.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.inputs.column_types import LossError, portable, to_portable, widest
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import WORDS
from clipbatch.runs import copying, latest
from clipbatch.runs.copying import Compacted
from clipbatch.runs.flat import targets_in
from clipbatch.runs.increments import increments
from clipbatch.storage.paths import as_path
from clipbatch.workers import signals


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """A part of an increment, and which of its rows are wanted."""

    run: RunDir
    plan: Plan
    number: int
    wanted: NDArray[np.bool_]


def compact(source: str, out: str, *, rows_per_file: int | None = None) -> Compacted:
    """Copy the latest rows of the dataset in `source` into a few large files in the folder `out`, and verify them.

    rows_per_file: the maximum of rows in a file; None: as many as have about 512 MiB.
    Raises: InputError if an increment is not finished, or `out` holds other files; DamagedError for damaged parts.
    """
    copying.check_rows_per_file(rows_per_file)
    folder = Path(source)
    done = increments(folder)
    runs = [(run, run.plan()) for run in map(RunDir, done)]
    prints = {run.path.name: copying.check_finished(run, plan) for run, plan in runs}
    rows = latest.latest(done)
    mask = rows.mask(rows.numbers)
    mask[latest.read_deleted(folder, rows)] = False
    if not mask.any():
        raise InputError(f"{source} has no rows: none of its images is left")
    shards = _shards(runs, mask)
    schema = _schema(runs)
    each = rows_per_file or _rows_per_file(runs)
    total = int(mask.sum())
    starts = range(0, total, each)
    targets = targets_in(as_path(out), len(starts))
    counts = {run.path.name: count_statuses(run, plan, range(plan.shards)) for run, plan in runs}
    state = json.dumps([prints, {name: sorted(its.items()) for name, its in counts.items()}, total], sort_keys=True)
    digest = hashlib.sha256(state.encode() + mask.tobytes()).hexdigest()
    checked: set[tuple[str, int]] = set()
    for number, (target, start) in enumerate(zip(targets, starts, strict=True)):
        if copying.is_written(target, digest, footer := {"clipbatch.file": f"{number} of {len(targets)}"}):
            continue
        tables = functools.partial(_tables, shards, schema, range(start, min(start + each, total)), checked)
        footer |= {"clipbatch.fingerprint": digest}
        compression = runs[-1][1].run_settings().output.compression
        copying.write(target, copying.with_footer(schema, footer), tables, compression)
    return Compacted(
        rows=total,
        parts=sum(plan.shards for _, plan in runs),
        files=len(targets),
        out=out,
        source_may_be_deleted=False,
    )


def _shards(runs: Sequence[tuple[RunDir, Plan]], mask: NDArray[np.bool_]) -> list[_Shard]:
    shards, first = [], 0
    for run, plan in runs:
        for number in range(plan.shards):
            rows = plan.shard_rows(number)
            wanted = mask[first + rows.start : first + rows.stop]
            shards.append(_Shard(run=run, plan=plan, number=number, wanted=wanted))
        first += plan.rows
    return shards


def _rows_per_file(runs: Sequence[tuple[RunDir, Plan]]) -> int:
    """By the size of the first part of each increment."""
    size = sum(copying.size_of(run.part(0, plan.shards)) for run, plan in runs)
    return max(1, copying.FILE_BYTES * sum(len(plan.shard_rows(0)) for _, plan in runs) // max(1, size))


def _schema(runs: Sequence[tuple[RunDir, Plan]]) -> pa.Schema:
    """The columns of all increments, and `increment`. Text where one has text and another one something else."""
    schemas = [copying.schema_of(run, plan, 0) for run, plan in runs]
    fields: dict[str, pa.Field] = {}
    for field in (field for schema in schemas for field in schema):
        field = field.with_type(portable(field.type)).remove_metadata()
        before = fields.setdefault(field.name, field.with_nullable(True))
        fields[field.name] = before.with_type(widest(before.type, field.type))
    name = "increment"
    while name in fields:
        name = f"clipbatch_{name}"
    metadata = {key: value for key, value in (schemas[-1].metadata or {}).items() if key not in _OF_ONE_RUN}
    return pa.schema([*fields.values(), pa.field(name, WORDS)], metadata)


_OF_ONE_RUN = (b"clipbatch.shards", b"clipbatch.counts", b"clipbatch.fingerprint")


def _tables(
    shards: Sequence[_Shard], schema: pa.Schema, rows: range, checked: set[tuple[str, int]]
) -> Iterator[pa.Table]:
    """The wanted rows with the numbers `rows`, counted through all shards. checked: parts that were found whole."""
    first = 0
    for shard in shards:
        count = int(shard.wanted.sum())
        inside = range(max(rows.start - first, 0), min(rows.stop - first, count))
        first += count
        if not len(inside):
            continue
        if (key := (str(shard.run.path), shard.number)) not in checked:
            copying.check_parts(shard.run, shard.plan, [shard.number])
            checked.add(key)
        wanted = np.flatnonzero(shard.wanted)[inside.start : inside.stop]
        at = 0
        for table in copying.tables_of(shard.run, shard.plan, [shard.number]):
            signals.check()
            here = wanted[(wanted >= at) & (wanted < at + table.num_rows)] - at
            at += table.num_rows
            if len(here):
                yield _alike(table.take(here), schema, shard.run.path.name)


def _cast(values: pa.Array, field: pa.Field, increment: str) -> pa.Array:
    try:
        return to_portable(values)[0].cast(field.type)
    except (pa.ArrowException, LossError) as error:
        raise InputError(
            f"column {field.name!r} is {values.type} in {increment} and has to be {field.type} for all increments: "
            f"{error}; compact each increment on its own"
        ) from error


def _alike(table: pa.Table, schema: pa.Schema, increment: str) -> pa.Table:
    """`table` with the columns of `schema`."""
    columns = []
    for field in list(schema)[:-1]:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        values = table[field.name].combine_chunks()
        if values.type != field.type:
            values = _cast(values, field, increment)
        columns.append(values)
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(table.num_rows, np.int32)), [increment])
    return pa.Table.from_arrays([*columns, name], schema=schema.remove_metadata())
