"""A run that is killed at any moment and run again ends with the same bytes."""

import random
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli, rows, start
from tests.support.corpus import make_folder

KILLS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_folder(folder, 800, seed=11, bad_fraction=0.1)
    return folder


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


def test_twenty_kills_leave_the_same_parts_as_an_undisturbed_run(
    cli: Cli, warm: Cli, folder: Path, tmp_path: Path
) -> None:
    command = ("run", folder, *DEMO, "--shard-size", 64)
    begun = time.monotonic()
    cli(*command, "--out", tmp_path / "whole")
    whole_s = time.monotonic() - begun
    dice, killed = random.Random(5), 0
    while killed < KILLS:
        process = start(*command, "--out", tmp_path / "killed")
        try:
            process.wait(dice.uniform(0.05, whole_s))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate()
        if len(parts(tmp_path / "killed")) == len(parts(tmp_path / "whole")):
            for number, part in enumerate(sorted((tmp_path / "killed" / "parts").glob("*.parquet"))):
                if number % 2:  # begin again from half of the parts, so that every kill meets a run in progress
                    part.unlink()
    warm(*command, "--out", tmp_path / "killed")
    assert parts(tmp_path / "killed") == parts(tmp_path / "whole")
    assert warm("verify", tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed" / "parts").iterdir() if path.suffix != ".parquet"] == []


def listens(process: "subprocess.Popen[str]") -> bool:
    """Whether the process has a handler for SIGTERM by now (proc(5)); before that, it ends as any program."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("signum", "at_work"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
)
def test_a_signal_ends_the_run_with_75_and_the_same_command_resumes(
    warm: Cli, folder: Path, tmp_path: Path, signum: signal.Signals, at_work: bool
) -> None:
    many = tmp_path / "many.txt"
    many.write_text("\n".join(str(path) for path in sorted(folder.rglob("*.jpg"))[:100] * 40))
    command = ("run", many, *DEMO, "--shard-size", 256, "--out", tmp_path / "out")
    process = start(*command)
    while not listens(process):
        time.sleep(0.001)
    while at_work and not parts(tmp_path / "out"):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signum)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 75, err
    assert signum.name in err
    assert "same command" in err
    assert list(tmp_path.glob("out/parts/*.tmp")) == []
    warm(*command)
    assert "4000 rows" in warm("verify", tmp_path / "out").stdout


def test_bad_images_are_tried_again_on_request_and_the_others_keep_their_scores(warm: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    listed = make_folder(folder, 200, seed=2, bad_fraction=0)
    hidden = [folder / one.name for one in listed[40:60]]
    for path in hidden:
        path.rename(path.with_name(path.name + ".hidden"))
        path.touch()
    command = ("run", folder, *DEMO, "--shard-size", 64, "--out", tmp_path / "out")
    warm(*command)
    before = rows(tmp_path / "out")
    assert before["status"].to_pylist().count("empty") == 20
    for path in hidden:
        path.with_name(path.name + ".hidden").rename(path)
    warm(*command)
    assert rows(tmp_path / "out").equals(before)
    warm(*command, "--retry-bad")
    after = rows(tmp_path / "out")
    assert set(after["status"].to_pylist()) == {"ok"}
    untouched = np.array([status == "ok" for status in before["status"].to_pylist()])
    assert after.filter(untouched).equals(before.filter(untouched))
    warm(*command[:-1], tmp_path / "fresh")
    assert parts(tmp_path / "fresh") == parts(tmp_path / "out")


def test_a_manifest_that_was_edited_after_the_plan_is_refused(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    warm("plan", folder, *DEMO, "--out", out)
    (manifest,) = (out / "manifest").iterdir()
    data = bytearray(manifest.read_bytes())
    data[100] ^= 1
    manifest.write_bytes(data)
    assert f"the manifest {manifest} was changed" in warm("run", "--out", out, code=3).stderr
    assert list((out / "parts").iterdir()) == []
