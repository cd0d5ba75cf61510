"""Damage to the files of a run directory: it is noticed, nothing uses the damaged file, and the remedy repairs it."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipbatch.rundir import copies, creation, damage, records
from clipbatch.rundir.layout import RunDir
from tests.conftest import DEMO, Cli, rows
from tests.support.flips import KINDS, Flips
from tests.support.heads import DEMO_WIDTH, random_layers, save_head
from tests.support.old_run import FIXTURE, every_command, refused, run_command, tree

FLIPS = 60
HEAD = ("--head", "fine=fine.safetensors")


@pytest.fixture(scope="module")
def whole(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `run`, with the inputs of its images beside it; not to be changed."""
    folder = shutil.copytree(FIXTURE, tmp_path_factory.mktemp("whole") / "in", ignore=shutil.ignore_patterns("run"))
    save_head(folder / "fine.safetensors", random_layers(np.random.default_rng(0), [DEMO_WIDTH, 1]))
    warm(*run_command(), *HEAD, "--shard-size", 4, "--batch-size", 4, "--embeddings", "--out", "run", cwd=folder)
    return folder


@pytest.fixture
def here(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`, which is to be the working folder."""
    return shutil.copytree(whole, tmp_path / "here")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run of a version that wrote no digests."""
    folder = shutil.copytree(FIXTURE, tmp_path / "old")
    shutil.copytree(folder / "finished", folder / "run" / "parts", dirs_exist_ok=True)
    return folder


def test_flipped_bits_are_noticed_and_the_remedy_restores_the_run(warm: Cli, tmp_path: Path) -> None:
    flips, rng, found = Flips(warm, tmp_path / "flips"), random.Random(12), Counter[str]()
    for number in range(FLIPS):
        made = flips.try_one(list(KINDS)[number % len(KINDS)], rng)
        assert made.said
        assert not made.faults, made
        found[made.kind] += 1
    assert set(found) == set(KINDS)


@pytest.mark.parametrize("name", copies.NAMES)
def test_a_missing_file_is_restored_from_its_copy_and_a_copy_from_its_file(warm: Cli, here: Path, name: str) -> None:
    before = tree(here / "run")
    (here / "run" / name).unlink()
    all_read_it = name in ("run.json", "model.json")
    for line in every_command("/proc/self/cwd/images"):
        if line[0] in ("verify", "run") or (all_read_it and line[0] != "submit") or name == "run.json":
            error = refused(warm, here, *line)
            assert f"run/{name} is damaged: it is missing; clipbatch verify " in error
            assert "run --restore restores it from its copy" in error
    shown = warm("verify", "run", "--restore", cwd=here)
    assert shown.stderr == f"restored run/{name} from copies/{name}\n"
    assert "every one there once, in order and whole" in shown.stdout
    assert tree(here / "run") == before
    (here / "run" / "copies" / name).unlink()
    error = warm("verify", "run", cwd=here, code=5).stderr
    assert f"run/copies/{name}: missing" in error
    assert "--repair" not in error
    warm("status", "run", cwd=here)
    warm("verify", "run", "--restore", cwd=here)
    assert tree(here / "run") == before
    shutil.rmtree(here / "run" / "copies")  # as of one that was killed before it made them
    warm("run", "--out", "run", cwd=here)
    assert tree(here / "run") == before


def test_if_file_and_copy_are_damaged_nothing_is_restored_and_the_error_asks_for_a_backup(
    warm: Cli, here: Path
) -> None:
    for path in (here / "run" / "model.json", here / "run" / "copies" / "model.json"):
        path.write_bytes(path.read_bytes().replace(b"bicubic", b"bicubie"))
    before = tree(here / "run")
    assert "are both damaged: restore one of them from a backup" in refused(warm, here, "verify", "run", "--restore")
    assert tree(here / "run") == before


def test_verify_without_restore_writes_nothing(warm: Cli, here: Path, old: Path) -> None:
    for folder in (here, old):
        (folder / "run" / "parts" / "part-00001.parquet").unlink()
        before = {str(path): path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
        said = warm("verify", "run", cwd=folder, code=5).stderr
        assert "part-00001.parquet: missing" in said
        assert re.search("1 of [0-9]+ parts are not there: they have not been done yet, or are deleted:", said)
        assert said.endswith("remedy: clipbatch run --out run\n")  # nothing to be repaired
        assert {str(path): path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before


def test_damaged_files_and_damaged_parts_have_different_remedies(warm: Cli, here: Path) -> None:
    (here / "run" / "copies" / "run.json").write_bytes(b"")
    (here / "run" / "parts" / "part-00001.parquet").write_bytes(b"PAR1")
    first, second = warm("verify", "run", cwd=here, code=5).stderr.split("\n\nremedy: clipbatch verify run --restore")
    assert "files beside the parts are not as they should be:" in first
    assert "1 of 5 parts are not as they should be:" in second
    assert second.endswith("remedy: clipbatch run --out run --repair\n")
    assert len(json.loads(warm("verify", "run", "--json", cwd=here, code=5).stdout)["problems"]) == 2


def test_a_planner_does_not_remove_a_run_that_has_lost_its_plan_without_overwrite(warm: Cli, here: Path) -> None:
    before = tree(here / "run")
    (here / "run" / "run.json").unlink()
    error = refused(warm, here, *run_command(), "--out", "run")
    assert "--restore restores it from its copy" in error
    assert "--overwrite discards the run" in error
    assert tree(here / "run") == {name: data for name, data in before.items() if name != "run.json"}
    warm(*run_command(), "--limit", 4, "--out", "run", "--overwrite", cwd=here)
    assert rows(here / "run").num_rows == 4
    warm("verify", "run", cwd=here)
    assert (here / "run" / "copies" / "run.json").read_bytes() == (here / "run" / "run.json").read_bytes()


def test_a_process_killed_while_removing_a_run_leaves_no_copy_without_its_plan(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(os, "rename", kill)  # by which run.json goes
    with pytest.raises(KilledError):
        creation.clear(RunDir(here / "run"))
    assert RunDir(here / "run").plan().rows == 18
    assert not (here / "run" / "copies").exists()


def test_a_copy_of_another_plan_is_replaced_by_the_plan_of_the_run(warm: Cli, here: Path) -> None:
    """As if a planner was so slow to write its copy that another plan had replaced its own."""
    before = tree(here / "run")
    warm(*run_command(), "--limit", 8, "--out", "other", cwd=here)
    shutil.copy(here / "other" / "run.json", here / "run" / "copies" / "run.json")
    assert "run/copies/run.json: damaged" in warm("verify", "run", cwd=here, code=5).stderr
    warm("verify", "run", "--restore", cwd=here)
    assert tree(here / "run") == before


def test_a_run_in_a_store_is_repaired_like_one_on_a_disk(warm: Cli, whole: Path, s3: Any, bucket: str) -> None:
    out = f"{bucket}/damaged"
    warm(*run_command(), *HEAD, "--shard-size", 4, "--batch-size", 4, "--out", out, cwd=whole)
    for name in copies.NAMES:
        path = RunDir(out).path / name
        content = path.read_bytes()
        for spoil in (lambda p=path: p.unlink(), lambda p=path, c=content: p.write_bytes(c[:-1] + bytes([c[-1] ^ 1]))):
            spoil()
            assert f"{path} is damaged: " in refused(warm, whole, "verify", out)
            warm("verify", out, "--restore", cwd=whole)
            assert path.read_bytes() == content
        copied = RunDir(out).path / copies.FOLDER / name
        copied.write_bytes(b"")
        assert f"{copied}: damaged" in warm("verify", out, cwd=whole, code=5).stderr
        warm("run", "--out", out, cwd=whole)
        assert copied.read_bytes() == content
    warm("run", "images", *run_command()[2:], "--limit", 4, "--out", out, "--overwrite", cwd=whole)
    warm("verify", out, cwd=whole)


def test_missing_label_features_are_recomputed_only_if_equal_to_the_last_bit(warm: Cli, here: Path) -> None:
    before = tree(here / "run")
    for path in (here / "run" / "text.npy", here / "run" / "copies" / "text.npy"):
        path.unlink()
    part = here / "run" / "parts" / "part-00001.parquet"
    part.unlink()
    warm("run", "--out", "run", cwd=here)
    assert tree(here / "run") == before
    facts = json.loads((here / "run" / "model.json").read_text())
    del facts["sha256"]
    for folder in (here / "run", here / "run" / "copies"):
        (folder / "model.json").write_bytes(records.seal(json.dumps({**facts, "text_sha256": "0" * 64}).encode()))
        (folder / "text.npy").unlink()
    part.unlink()
    assert "the features that this machine computes differ in the last bits" in refused(
        warm, here, "run", "--out", "run"
    )
    assert not part.exists()
    assert not (here / "run" / "text.npy").exists()


def test_a_rescoring_has_its_own_label_features(warm: Cli, here: Path) -> None:
    warm("rescore", "run", "--labels", "cat,dog", "--out", "again", cwd=here)
    ours, theirs = (RunDir(here / name).model_facts() for name in ("again", "run"))
    assert ours
    assert theirs
    assert ours["text_sha256"] != theirs["text_sha256"]
    text = here / "again" / "text.npy"
    text.write_bytes(text.read_bytes()[:-1] + b"?")
    (here / "again" / "parts" / "part-00000.parquet").unlink()
    error = refused(warm, here, "rescore", "run", "--labels", "cat,dog", "--out", "again")
    assert "again/text.npy is damaged: its bytes are not those that were written" in error
    warm("verify", "again", "--restore", cwd=here, code=5)
    warm("rescore", "run", "--labels", "cat,dog", "--out", "again", cwd=here)
    warm("verify", "again", cwd=here)


def test_a_damaged_cache_of_label_features_is_reported_once_and_rebuilt(warm: Cli, here: Path, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    warm(*run_command(), "--out", "first", cwd=here, env=env)
    (cached,) = (tmp_path / "cache" / "clipbatch" / "text").iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    said = [warm(*run_command(), "--out", out, cwd=here, env=env) for out in ("second", "third")]
    counts = [(one.stdout + one.stderr).count("are damaged; computing them again") for one in said]
    assert counts == [1, 0]
    assert cached.read_bytes() == content
    assert (here / "second" / "text.npy").read_bytes() == (here / "first" / "text.npy").read_bytes()


KILLS = """
import dataclasses, os, shutil, sys
from pathlib import Path
from clipbatch.runs import plan as planner
from clipbatch.rundir import copies
from clipbatch.rundir import damage
from clipbatch.config import from_flat
from clipbatch.rundir.layout import RunDir

what, whole, out, inputs, step = *sys.argv[1:5], int(sys.argv[5])
settings = {"inputs": [inputs], "labels": "groups.toml", "model": "clipbatch-demo", "device": "cpu"}
settings |= {"head": ["fine=fine.safetensors"], "embeddings": True, "batch_size": 4, "shard_size": 4}
settings = from_flat(settings)

def work():
    if what == "restore":
        damage.restore(RunDir(out))
    elif what == "protect":
        damage.protect(RunDir(out), RunDir(out).plan())
    else:
        planner.plan(settings, out, overwrite=True)

def prepare():
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole, out)
    if what == "restore":
        Path(out, "run.json").unlink()
        for name in ("model.json", "copies/text.npy", ".counts.json"):
            Path(out, name).write_bytes(b"{")
    elif what == "protect":
        shutil.rmtree(Path(out, "copies"))

def killed(at):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    left = at
    def trace(frame, event, argument):
        nonlocal left
        ours = ("creation.py", "copies.py", "damage.py", "layout.py", "atomic.py")
        if Path(frame.f_code.co_filename).name not in ours:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os._exit(9)
        return trace
    sys.settrace(trace)
    work()
    os._exit(0)

at = 0
prepare()
while killed(at):
    if what == "overwrite":
        damage.protect(RunDir(out), planner.plan(settings, out))  # as `run` does it
    else:
        work()
    run = RunDir(out)
    assert damage.problems(run, run.plan()) == [], at
    for name in copies.NAMES if what != "overwrite" else copies.NAMES[:2]:
        data = Path(out, name).read_bytes()
        assert data == Path(out, "copies", name).read_bytes(), (at, name)
        assert what == "overwrite" or data == Path(whole, name).read_bytes(), (at, name)
    if what == "overwrite":
        assert dataclasses.replace(run.plan(), replacement=None) == RunDir(whole).plan(), at
    at += step
    prepare()
print(at // step)
"""
"""Kills a process at each line in turn, and continues as the next process would. A forked process has no threads."""


@pytest.mark.parametrize(("what", "step", "least"), [("restore", 1, 100), ("protect", 1, 50), ("overwrite", 5, 50)])
def test_the_next_process_repairs_what_one_killed_at_any_line_leaves(
    here: Path, what: str, step: int, least: int
) -> None:
    arguments = [what, "run", "killed", "/proc/self/cwd/images", str(step)]
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLS, *arguments], cwd=here, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) > least


def test_protecting_a_run_reads_its_files_and_writes_only_what_is_missing(here: Path) -> None:
    run = RunDir(here / "run")
    times = {path.name: path.stat().st_mtime_ns for path in (here / "run" / "copies").iterdir()}
    damage.protect(run, run.plan())
    assert {path.name: path.stat().st_mtime_ns for path in (here / "run" / "copies").iterdir()} == times
    assert sorted(times) == sorted(copies.NAMES)


def test_demo_runs_carry_digests(warm: Cli, here: Path) -> None:
    warm("run", "images", *DEMO, "--out", "plain", cwd=here)
    for name in ("run.json", "model.json", ".counts.json"):
        assert records.unseal((here / "plain" / name).read_bytes())[1] is not None
