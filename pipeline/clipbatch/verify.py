"""Is every row there once, in order, whole, and of this run? Reads every byte of the parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.manifest import Manifest
from clipbatch.rundir import Plan, RunDir
from clipbatch.seal import is_whole


def problems(run: RunDir, plan: Plan, shards: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Each of `shards` that is not as it should be, with what is wrong, in their order."""
    manifest = Manifest(run, plan)
    fingerprint = run.fingerprint()
    for shard in shards:
        wrong = _problem(run, plan, manifest, shard, fingerprint)
        if wrong:
            yield shard, f"{run.part(shard, plan.shards)}: {wrong}"


def _problem(run: RunDir, plan: Plan, manifest: Manifest, shard: int, fingerprint: str | None) -> str | None:
    path = run.part(shard, plan.shards)
    if not path.exists():
        return "not there"
    try:
        data = path.read_bytes()
        if not is_whole(data):
            return "damaged (its bytes are not those that were written)"
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            footer = {k.decode(): v.decode() for k, v in (file.metadata.metadata or {}).items()}
            table = file.read()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
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
    scores = "top" if "top" in table.column_names else "scores"
    for name in ("label", "score", scores):
        if not pc.all(pc.equal(pc.is_valid(table[name]), ok)).as_py():
            return f"its {name} does not agree with its status"
    counted = {entry["values"]: entry["counts"] for entry in table["status"].value_counts().to_pylist()}
    if json.loads(footer.get("clipbatch.counts", "null")) != counted:
        return "its footer's counts are not its rows'"
    return None
