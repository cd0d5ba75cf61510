"""Counts of finished parts: equal to those in their footers, even if a part was replaced since they were cached."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.errors import InputError
from clipbatch.rundir.counts import CACHE, count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir

SHARDS = 12


def write(path: Path, **counts: int) -> None:
    table = pa.table({"row_id": [0]}).replace_schema_metadata({"clipbatch.counts": json.dumps(counts)})
    pq.write_table(table, path.with_name("aside"))
    os.replace(path.with_name("aside"), path)


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunDir, Plan]:
    """A run whose parts have as many good rows as their shard's number."""
    facts: dict[str, Any] = {"manifest_sha256": {}, "settings": {}, "passed_over": {}, "versions": {}}
    plan = Plan(rows=SHARDS, identity={"shard_size": 1, "batch_size": 1}, manifest_rows=1, **facts)
    found = RunDir(tmp_path)
    found.make_parts()
    for shard in range(SHARDS):
        write(tmp_path / "parts" / f"part-{shard:05d}.parquet", ok=shard)
    return found, plan


def test_counts_are_read_once_and_again_if_a_part_was_replaced(run: tuple[RunDir, Plan]) -> None:
    expected = {shard: {"ok": shard} for shard in range(SHARDS)}
    assert count_statuses(*run, range(SHARDS)) == expected
    parts = run[0].path / "parts"
    kept = {path.name: path.stat() for path in parts.iterdir()}
    for name, facts in kept.items():  # spoiled behind its back, with size, time and file number as they were
        (parts / name).write_bytes(bytes(facts.st_size))
        os.utime(parts / name, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert count_statuses(*run, range(SHARDS)) == expected  # so these came from the cache
    for shard in range(SHARDS):
        write(parts / f"part-{shard:05d}.parquet", ok=shard)
    write(parts / "part-00003.parquet", ok=9)  # of the same size
    assert count_statuses(*run, [2, 3]) == {2: {"ok": 2}, 3: {"ok": 9}}
    (parts / "part-00004.parquet").unlink()
    assert count_statuses(*run, [5]) == {5: {"ok": 5}}


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"part-00001.parquet": [[1, 2, 3], {"ok": 7}]}', b"\xff"])
def test_without_a_good_cache_the_footers_are_read(run: tuple[RunDir, Plan], content: bytes | None) -> None:
    count_statuses(*run, range(3))
    if content is None:
        (run[0].path / CACHE).unlink()
    else:
        (run[0].path / CACHE).write_bytes(content)
    assert count_statuses(*run, range(3)) == {0: {"ok": 0}, 1: {"ok": 1}, 2: {"ok": 2}}


def test_a_damaged_part_is_named_with_the_remedy(run: tuple[RunDir, Plan]) -> None:
    (run[0].path / "parts" / "part-00007.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-00007\.parquet is damaged: .*--repair"):
        count_statuses(*run, range(SHARDS))
