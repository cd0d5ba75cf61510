"""Verify finished parts: every manifest row appears once and in order, undamaged, and belongs to this run.

Reads every byte of the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.config import Settings
from clipbatch.config.memory_limits import too_little_memory
from clipbatch.errors import InputError
from clipbatch.rundir import captions
from clipbatch.rundir.captions import CaptionColumn
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.head_rows import head_problem
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import GroupColumns, group_columns
from clipbatch.rundir.scores_check import group_problem
from clipbatch.storage.paths import AnyPath, parquet_source


def problems(run: RunDir, plan: Plan, shards: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Each of `shards` with a problem, in their order, with the path of the part and what is wrong."""
    manifest = Manifest(run, plan)
    fingerprint = run.fingerprint()
    settings = plan.run_settings()
    groups = group_columns(plan.labels, settings.output)
    for shard in shards:
        problem = _problem(run, plan, manifest, shard, fingerprint, groups, settings)
        if problem:
            yield shard, f"{run.part(shard, plan.shards)}: {problem}"


def check_plan(run: RunDir, plan: Plan) -> None:
    """For a run without digests. Raises: InputError if all parts have the same fingerprint, and it is not this run's.

    Then `run.json` or `model.json` is damaged, and not the parts.
    """
    done = sorted(run.done(plan))
    if plan.sha256 is not None or not done:
        return
    fingerprints = {_fingerprint(run.part(shard, plan.shards)) for shard in done}
    if len(fingerprints) == 1 and fingerprints.isdisjoint((run.fingerprint(), None)):
        raise InputError(
            f"{run.plan_file} or {run.model_file} is damaged: all {len(done)} parts have another fingerprint; restore "
            "the files that belong to them from a backup"
        )


def _fingerprint(part: AnyPath) -> str | None:
    """The fingerprint in a part's footer; None if it cannot be read."""
    try:
        return str((pq.read_metadata(parquet_source(part)).metadata or {})[b"clipbatch.fingerprint"].decode())
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def _problem(
    run: RunDir,
    plan: Plan,
    manifest: Manifest,
    shard: int,
    fingerprint: str | None,
    groups: list[GroupColumns],
    settings: Settings,
) -> str | None:
    manifest.check(shard)
    path = run.part(shard, plan.shards)
    if not path.exists():
        return "missing"
    try:
        data = path.read_bytes()
        if not verify_file(data):
            return "damaged (its bytes are not those that were written)"
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            footer = {k.decode(): v.decode() for k, v in (file.metadata.metadata or {}).items()}
            table = file.read()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if refusal := too_little_memory(error):
            raise refusal from error
        return f"damaged ({str(error).splitlines()[0]})"
    if footer.get("clipbatch.fingerprint") != fingerprint:
        return "belongs to another run (its fingerprint differs)"
    if footer.get("clipbatch.shard") != str(shard):
        return f"holds the rows of part {footer.get('clipbatch.shard')}"
    rows = manifest.rows(shard)
    if not table["row_id"].equals(rows["row_id"]):
        return "its row_ids differ from the manifest"
    if not table["uri"].equals(rows["uri"].cast(pa.string())):
        return "its uris differ from the manifest"
    ok = pc.equal(table["status"].cast(pa.string()), "ok")
    for group, columns in zip(plan.labels.groups, groups, strict=True):
        if wrong := group_problem(table, ok, group, columns):
            return wrong
    for head in plan.heads:
        if wrong := head_problem(table, ok, head):
            return wrong
    if wrong := _other_problem(table, ok, settings, captions.column_of(run, plan, rows.schema), footer):
        return wrong
    counted = {entry["values"]: entry["counts"] for entry in table["status"].value_counts().to_pylist()}
    if json.loads(footer.get("clipbatch.counts", "null")) != counted:
        return "the counts in its footer differ from its rows"
    return None


def _other_problem(
    table: pa.Table, ok: pa.ChunkedArray, settings: Settings, column: CaptionColumn | None, footer: Mapping[str, str]
) -> str | None:
    """What is wrong with the columns that do not come from labels, in words; None if nothing is.

    column: that of the captions.
    """
    if settings.output.embeddings:
        if "embedding" not in table.column_names:
            return "it has no column embedding"
        if not pc.is_valid(table["embedding"]).equals(ok):
            return "its embedding does not match its status"
    if column is not None:
        if wrong := captions.problem(table, ok, column):
            return wrong
        if json.loads(footer.get(captions.FOOTER, "null")) != captions.count(table, column):
            return "the counts of captions in its footer differ from its rows"
    return None
