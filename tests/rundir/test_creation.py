"""Several planners create a run in one folder at the same time: the result is one complete plan."""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import from_flat, labels
from clipbatch.errors import OtherRunError
from clipbatch.rundir import creation
from clipbatch.rundir.differences import difference
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan as planner
from clipbatch.stages.write import Write
from clipbatch.storage.atomic import file_sha256, temp_name
from tests.conftest import DEMO, Cli, rows, start
from tests.support.corpus import make_folder
from tests.support.history import death

PLANNER = """
import sys
from pathlib import Path
from clipbatch.runs import run as api
from clipbatch.config import from_flat
from clipbatch.errors import ClipbatchError
inputs, out, labels = sys.argv[1:]
sizes = {"shard_size": 32, "batch_size": 32}
settings = from_flat({"inputs": [inputs], "labels": labels, "model": "clipbatch-demo", **sizes})
print("ready", flush=True)
sys.stdin.read(1)
try:
    print(api.plan(settings, out).fingerprint)
except ClipbatchError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begin")
    make_folder(folder, 200, seed=4, bad_fraction=0.1)
    return folder


def planners(folder: Path, out: Path, labels: list[str]) -> list[str]:
    """The output of several planners that start at the same time."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PLANNER, str(folder), str(out)]
    processes: list[Any] = [subprocess.Popen([*command, names], **pipes) for names in labels]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(labels)
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    return [process.communicate(timeout=120)[0].strip() for process in processes]


def test_long_values_that_differ_are_shown_where_they_do() -> None:
    names = [f"label number {number}" for number in range(500)]
    labels = {"labels": [{"group": "a", "names": names}]}
    longer = {"labels": [{"group": "a", "names": [*names, "one", "two"]}]}
    said = 'labels[0].names has 502 entries now and 500 there; only now: "one", "two"'
    assert difference(labels, longer) == said
    other = {"labels": [{"group": "a", "names": [*names[:7], "x" * 99, *names[8:]]}]}
    assert difference(labels, other) == f'labels[0].names[7] is "{"x" * 99}" now and "label number 7" there'
    url = "https://example.org/?" + "token" * 1000  # one text is not taken apart
    assert difference({"inputs": [url]}, {"inputs": ["in"]}) == f'inputs[0] is "in" now and "{url}" there'
    assert difference({"top_k": 3}, {"top_k": 3, "limit": None}) is None


def test_planners_of_one_run_agree_on_one_plan(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        out = tmp_path / str(number)
        said = planners(folder, out, ["cat,dog"] * 4)
        plan = RunDir(out).plan()
        assert said == [plan.fingerprint] * 4
        assert [len(Manifest(RunDir(out), plan).rows(shard)) for shard in range(7)] == [32] * 6 + [8]
        assert sorted(os.listdir(out)) == ["copies", "manifest", "parts", "run.json"]
        assert (out / "copies" / "run.json").read_bytes() == (out / "run.json").read_bytes()


def test_of_planners_with_different_settings_one_wins_and_the_others_get_an_error(folder: Path, tmp_path: Path) -> None:
    said = planners(folder, tmp_path / "out", ["cat,dog", "dog,cat", "cat,cow"])
    plan = RunDir(tmp_path / "out").plan()
    refused = [line for line in said if line.startswith("OtherRunError")]
    assert all("labels is" in line for line in refused)
    assert plan.fingerprint in said  # a plan that nobody has worked on gives way to one that comes later
    assert len(set(said)) == 3
    assert Manifest(RunDir(tmp_path / "out"), plan).rows(0).num_rows == 32


def plan_in(run: RunDir, text: str) -> tuple[Plan, Path]:
    """A plan with its manifest still aside; `text` stands for the listing."""
    creation.ensure_usable(run)
    staged = temp_name(run.path / f"manifest-{text}")
    staged.mkdir()
    (staged / "part-00000.parquet").write_text(text)
    settings = from_flat({"inputs": ["in"], "labels": "a,b", "batch_size": 1, "shard_size": 1})
    digests = {"part-00000.parquet": file_sha256(staged / "part-00000.parquet")}
    facts: dict[str, Any] = {"settings": settings.flat(), "passed_over": {}, "versions": {}}
    identity = planner.identity(settings, labels.load(settings.labels), ["in"])
    plan = Plan(rows=1, identity=identity, manifest_rows=1, manifest_sha256=digests, **facts)
    return Plan.of(plan.content()), staged  # as it is read back: what is None and came later is not written


def test_a_later_plan_is_discarded_and_the_manifest_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first, second = plan_in(run, "first"), plan_in(run, "second")
    assert creation.create(run, *first, replace=False) == first[0]
    assert creation.create(run, *second, replace=False) == first[0]
    assert (run.manifest / "part-00000.parquet").read_text() == "first"


def test_a_manifest_of_a_dead_planner_is_removed_after_a_while(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    dead, living = plan_in(run, "dead"), plan_in(run, "living")
    os.rename(dead[1], run.manifest)
    assert creation.create(run, *living, replace=False) == living[0]
    assert (run.manifest / "part-00000.parquet").read_text() == "living"


def test_a_manifest_whose_planner_is_about_to_publish_is_left_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first, second = plan_in(run, "first"), plan_in(run, "second")
    os.rename(first[1], run.manifest)
    publishing = threading.Timer(0.2, run.freeze_plan, [first[0]])
    publishing.start()
    assert creation.create(run, *second, replace=False) == first[0]
    assert (run.manifest / "part-00000.parquet").read_text() == "first"
    publishing.join()  # it writes the second copy after run.json


def test_a_planner_stops_whenever_the_disk_fails_and_the_next_one_succeeds(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    command, died = ("plan", folder, *DEMO, "--out"), list[bool]()
    for changes in itertools.count():
        out = tmp_path / str(changes)
        died.append(death().during(out, changes, lambda out=out: warm(*command, out)))  # type: ignore[misc]
        warm(*command, out)
        assert Manifest(RunDir(out), RunDir(out).plan()).rows(0).num_rows == 200
        if not died[-1]:
            break
    assert len(died) > 8


def test_clearing_stops_if_another_process_has_created_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    creation.create(run, *plan_in(run, "old"), replace=False)
    (run.parts / "part-00000.parquet").touch()
    other = plan_in(run, "other")[0]
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        real(source, target)
        if Path(source) == run.plan_file:
            run.freeze_plan(other)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OtherRunError, match="another process has just begun"):
        creation.clear(run)
    assert run.plan() == other
    assert (run.parts / "part-00000.parquet").exists()


def test_six_runs_begun_in_pairs_at_the_same_moment_leave_the_parts_of_one(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    command = ("run", folder, *DEMO, "--shard-size", 32)
    warm(*command, "--out", tmp_path / "one")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "one" / "parts").iterdir()}
    for number in range(3):
        out = tmp_path / str(number)
        pair = [start(*command, "--out", out) for _ in range(2)]
        said = [process.communicate(timeout=300)[1] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], said
        assert {path.name: path.read_bytes() for path in (out / "parts").iterdir()} == expected
        warm("verify", out)


def test_of_two_runs_with_other_settings_begun_at_the_same_moment_one_is_refused(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    for number in range(2):
        out = tmp_path / str(number)
        pair = [start("run", folder, *DEMO, "--score", score, "--out", out) for score in ("softmax", "cosine")]
        said = [process.communicate(timeout=300)[1] for process in pair]
        codes = [process.returncode for process in pair]
        assert sorted(codes) == [0, 3], said
        assert (
            "with other settings" in said[codes.index(3)] or "another run has replaced this one" in said[codes.index(3)]
        )
        assert "200 rows" in warm("verify", out).stdout
        assert RunDir(out).plan().identity["score"] == ("softmax", "cosine")[codes.index(0)]


def test_a_run_that_is_overwritten_by_another_stops_and_writes_no_more_parts(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("\n".join(str(path) for path in sorted(folder.rglob("*.jpg"))[:100] * 200))
    process = start("run", listed, *DEMO, "--shard-size", 64, "--out", out)
    while not list((out / "parts").glob("*.parquet")):
        assert process.poll() is None
    warm("run", folder, "--labels", "cat,dog", *DEMO[2:], "--shard-size", 64, "--out", out, "--overwrite")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "another run has replaced this one" in err
    assert "200 rows" in warm("verify", out).stdout
    assert rows(out).num_rows == 200


def test_a_part_that_is_published_while_its_run_is_overwritten_is_withdrawn(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    warm("run", folder, *DEMO, "--limit", 20, "--out", out)
    run = RunDir(out)
    write = Write(run, run.plan(), fingerprint=run.fingerprint() or "", score="softmax", embedding=0)
    part = out / "parts" / "part-00000.parquet"
    content = part.read_bytes()
    write.withdraw(0)
    assert part.read_bytes() == content
    warm("plan", folder, "--labels", "cat,dog", *DEMO[2:], "--limit", 20, "--out", out, "--overwrite")
    part.write_bytes(content)
    write.withdraw(0)
    assert not part.exists()
    (out / "run.json").unlink()  # its copy is there
    with pytest.raises(OtherRunError, match=r"run\.json is missing, so this run stops writing"):
        run.plan_of("")


def test_a_run_is_ended_by_one_with_the_same_settings_too(warm: Cli, folder: Path, tmp_path: Path) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("\n".join(str(path) for path in sorted(folder.rglob("*.jpg"))[:100] * 200))
    command = (listed, *DEMO, "--shard-size", 64, "--out", out)
    process = start("run", *command)
    while not list((out / "parts").glob("*.parquet")):
        assert process.poll() is None
    fingerprint = RunDir(out).plan().fingerprint
    warm("plan", *command, "--overwrite")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert "another run has replaced this one" in err
    left = list((out / "parts").glob("*.parquet"))
    assert len(left) <= 1  # published between the worker's last look and the new plan, whose part has the same bytes
    for part in left:
        part.unlink()
    assert RunDir(out).plan().fingerprint == fingerprint
    plan = (out / "run.json").read_bytes()
    warm("plan", *command, "--overwrite")  # as several processes that begin with it at once
    assert (out / "run.json").read_bytes() == plan
    (out / "manifest" / "part-00000.parquet").write_bytes(b"damaged")
    warm("plan", *command, "--overwrite")
    assert (out / "run.json").read_bytes() != plan
    assert Manifest(RunDir(out), RunDir(out).plan()).rows(0).num_rows == 64
