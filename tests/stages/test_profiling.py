"""`--profile`: a Chrome trace with every stage of every batch in all threads, and where it is written."""

import json
from collections import Counter
from pathlib import Path

import pytest

from clipbatch.errors import InputError
from clipbatch.workers.engine import check_trace, numbered
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder


def test_a_trace_has_a_range_for_each_stage_of_each_batch(cli: Cli, tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 24, seed=2)
    sizes = ("--batch-size", 4, "--shard-size", 12)
    cli("run", tmp_path / "in", *DEMO, *sizes, "--profile", tmp_path / "trace.json", "--out", tmp_path / "out")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    batches = -(-rows(tmp_path / "out").num_rows // 4)
    stages = ("read", "decode", "encode", "score", "write")
    found = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert {stage: found[stage] for stage in stages} == dict.fromkeys(stages, batches)
    assert len({event["tid"] for event in events if event["name"] in stages}) >= len(stages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "trace.json"]


def test_a_trace_that_cannot_be_written_is_refused_before_the_work(cli: Cli, tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 1, seed=2)
    wrong = tmp_path / "gone" / "trace.json"
    error = cli("run", tmp_path / "in", *DEMO, "--profile", wrong, "--out", tmp_path / "out", code=3).stderr
    assert f"--profile {wrong}: not a file in an existing, writable folder" in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError):
        check_trace(str(tmp_path))


def test_each_process_has_its_own_trace_file() -> None:
    assert numbered("a/trace.json", "worker", 0, 1) == "a/trace.json"
    assert numbered(numbered("a/t.json", "rank", 2, 3), "worker", 1, 2) == "a/t-rank2-worker1.json"
    assert numbered(None, "worker", 1, 2) is None
