"""Makes of a finished run one with larger shards: the same rows in few large files, and a run directory like any other.

Only the shard size differs, so the manifest is cut anew, and the footers of the parts get the fingerprint of the new
run. Shards begin where shards of the source begin. So batches hold the same rows, and a part that is made again from
the images gets the same scores. Each part is written under another name, read back and compared with the parts of the
source row by row, and only then gets its name. In the end the new run is verified as `clipbatch verify` does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.errors import DamagedError, InputError, OtherRunError
from clipbatch.rundir import captions, copies, creation, features, head_weights, replacement
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import ManifestWriter
from clipbatch.rundir.records import unseal
from clipbatch.rundir.schema import STAMPS
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.rundir.verify import problems
from clipbatch.runs import copying
from clipbatch.runs.copying import Compacted
from clipbatch.runs.plan import manifest_rows, row_group_rows
from clipbatch.storage.atomic import file_sha256, remove_leftovers, write_json
from clipbatch.storage.paths import parquet_source
from clipbatch.workers import signals


def compact(source: RunDir, out: RunDir, rows_per_file: int | None) -> Compacted:
    """See `runs.run.compact`."""
    copying.check_rows_per_file(rows_per_file)
    frozen = source.plan()
    if isinstance(source.path, Path) and isinstance(out.path, Path) and source.path.resolve() == out.path.resolve():
        raise InputError(f"--out {out.path} is the run that is compacted: choose another folder")
    copying.check_finished(source, frozen)
    each = copying.shards_per_file(source, frozen, rows_per_file)
    plan = _freeze(source, frozen, out, each * frozen.shard_size)
    fingerprint = _freeze_model(source, frozen, out)
    remove_leftovers(out.parts)
    out.make_parts()
    counted = count_statuses(source, frozen, range(frozen.shards))
    for shard in range(plan.shards):
        shards = range(frozen.shards)[shard * each : (shard + 1) * each]
        counts = sum((Counter(counted[its]) for its in shards), Counter())
        target = out.part(shard, plan.shards)
        footer = {"clipbatch.shard": str(shard), "clipbatch.shards": str(plan.shards)}
        if copying.is_written(target, fingerprint, {**footer, "clipbatch.counts": copying.counts_json(counts)}):
            continue
        if better := replacement.refusal(target, shard, counts):
            raise InputError(f"{target} stays: {better}; choose a new or empty folder as --out")
        copying.check_parts(source, frozen, shards)
        schema = copying.schema_of(source, frozen, shards[0])
        footer["clipbatch.fingerprint"] = fingerprint
        copying.write(
            target,
            copying.with_footer(schema, footer),
            lambda shards=shards: copying.tables_of(source, frozen, shards),  # type: ignore[misc]
            frozen.run_settings().output.compression,
            column=captions.column_of(source, frozen),
        )
    _copy_report(source, out, plan)
    if wrong := [text for _, text in problems(out, plan, range(plan.shards))]:
        raise DamagedError(f"{wrong[0]}\nremedy: run the same command again; it copies that part anew")
    # An increment tells the next night which images are known.
    is_increment = STAMPS[0].name in copying.schema_of(source, frozen, 0).names
    return Compacted(
        rows=frozen.rows,
        parts=frozen.shards,
        files=plan.shards,
        out=str(out.path),
        source_may_be_deleted=not is_increment,
    )


def _freeze(source: RunDir, frozen: Plan, out: RunDir, shard_size: int) -> Plan:
    """Create the run in `out`, unless it exists. Returns its plan.

    Raises: OtherRunError if `out` is another run; InputError if it holds other files, or the manifest of `source` has
    changed.
    """
    with creation.staged(out) as folder:
        writer = ManifestWriter(folder, manifest_rows(shard_size), row_group_rows(frozen.shard_size))
        with writer:
            for batch in _manifest(source, frozen):
                signals.check()
                writer.write(batch)
        plan = dataclasses.replace(
            frozen,
            identity=frozen.identity | {"shard_size": shard_size},
            settings=frozen.settings | {"shard_size": shard_size},
            manifest_rows=manifest_rows(shard_size),
            manifest_sha256=writer.digests,
            sha256=None,
        )
        heads = head_weights.content(head_weights.load(source, frozen))
        valid = creation.create(out, plan, folder, replace=False, heads=heads)
    out.check_same(valid, plan.identity)
    if valid.fingerprint != plan.fingerprint:
        raise OtherRunError(f"{out.path} belongs to a run over other rows: choose a new or empty folder as --out")
    return valid


def _manifest(run: RunDir, plan: Plan) -> Iterator[pa.RecordBatch]:
    """The rows of the manifest without their numbers. Raises: InputError if it has changed or is gone."""
    for name, digest in sorted(plan.manifest_sha256.items()):
        path = run.manifest / name
        try:
            changed = file_sha256(path) != digest
        except OSError as error:
            raise InputError(f"cannot read the manifest {path}: {error.strerror or error}; restore it") from error
        if changed:
            raise InputError(f"the manifest {path} has changed since its run was planned: restore it")
        with pq.ParquetFile(parquet_source(path)) as file:
            for batch in file.iter_batches():
                yield batch.select([column for column in batch.schema.names if column != "row_id"])


def _freeze_model(source: RunDir, frozen: Plan, out: RunDir) -> str:
    """Copy the facts of the model and the label features. Returns the fingerprint of the new run."""
    if (text_features := features.load(source, frozen)) is not None:
        out.freeze(features.NAME, text_features[1])
    fingerprint = out.freeze_model(source.model_facts() or {})
    for name in copies.NAMES:
        copies.make(out.path, name)
    return fingerprint


def _copy_report(source: RunDir, out: RunDir, plan: Plan) -> None:
    """Copy `report.json`, which says how the images were labelled, with the number of parts that there are now."""
    with contextlib.suppress(OSError, DamagedRecordError):
        report, _ = unseal(source.frozen("report.json") or b"")
        parts = {"done": plan.shards, "planned": plan.shards}
        report |= {"parts": parts, "part": {"rank": 0, "world_size": 1, **parts}}
        write_json(out.path / "report.json", report | {"settings": plan.settings, "fingerprint": out.fingerprint()})
