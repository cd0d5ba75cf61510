"""Is every row there once, in order, whole, and of this run? Reads every byte of the parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.config.memory_limits import too_little_memory
from clipbatch.errors import InputError
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import GroupColumns, group_columns
from clipbatch.rundir.scores_check import group_problem
from clipbatch.storage.paths import AnyPath, parquet_source


def problems(run: RunDir, plan: Plan, shards: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Each of `shards` that is not as it should be, with what is wrong, in their order."""
    manifest = Manifest(run, plan)
    fingerprint = run.fingerprint()
    groups = group_columns(plan.labels, plan.run_settings().output)
    for shard in shards:
        wrong = _problem(run, plan, manifest, shard, fingerprint, groups)
        if wrong:
            yield shard, f"{run.part(shard, plan.shards)}: {wrong}"


def check_plan(run: RunDir, plan: Plan) -> None:
    """Raises: InputError where the run carries no digests, and all of its parts agree that they are of another one:
    then its `run.json` or `model.json` is damaged, and no part."""
    done = sorted(run.done(plan))
    if plan.sha256 is not None or not done:
        return
    found = {_fingerprint(run.part(shard, plan.shards)) for shard in done}
    if len(found) == 1 and found.isdisjoint((run.fingerprint(), None)):
        raise InputError(
            f"{run.plan_file} or {run.model_file} is damaged: all {len(done)} parts were made with others; put back "
            "the ones that go with them from a backup"
        )


def _fingerprint(part: AnyPath) -> str | None:
    """Of the run that the part says it is of; None where it cannot be read."""
    try:
        return str((pq.read_metadata(parquet_source(part)).metadata or {})[b"clipbatch.fingerprint"].decode())
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def _problem(
    run: RunDir, plan: Plan, manifest: Manifest, shard: int, fingerprint: str | None, groups: list[GroupColumns]
) -> str | None:
    manifest.check(shard)
    path = run.part(shard, plan.shards)
    if not path.exists():
        return "not there"
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
        return "of another run (its fingerprint differs)"
    if footer.get("clipbatch.shard") != str(shard):
        return f"holds shard {footer.get('clipbatch.shard')}"
    rows = manifest.rows(shard)
    if not table["row_id"].equals(rows["row_id"]):
        return "its row_ids are not the manifest's"
    if not table["uri"].equals(rows["uri"].cast(pa.string())):
        return "its uris are not the manifest's"
    ok = pc.equal(table["status"].cast(pa.string()), "ok")
    for group, columns in zip(plan.labels.groups, groups, strict=True):
        if wrong := group_problem(table, ok, group, columns):
            return wrong
    counted = {entry["values"]: entry["counts"] for entry in table["status"].value_counts().to_pylist()}
    if json.loads(footer.get("clipbatch.counts", "null")) != counted:
        return "its footer's counts are not its rows'"
    return None
