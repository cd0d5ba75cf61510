"""A run done by several processes has the same parts as a run done by one."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import DEMO, Cli, start
from tests.support.corpus import make_folder

SHARDS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    make_folder(folder, SHARDS * 32, seed=8, bad_fraction=0.1)
    return folder


@pytest.fixture(scope="module")
def whole(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    warm("run", folder, *DEMO, "--shard-size", 32, "--out", out)
    return parts(out)


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").iterdir()}


def numbers(out: Path) -> list[int]:
    return sorted(int(name.removesuffix(".parquet").removeprefix("part-")) for name in parts(out))


def test_ranks_do_their_parts_and_another_world_size_does_the_rest(
    warm: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, command = tmp_path / "out", ("run", folder, *DEMO, "--shard-size", 32, "--out", tmp_path / "out")
    array = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
    said = warm(*command, env={**array, "SLURM_ARRAY_TASK_ID": "1"}).stdout
    assert "rank 1 of 3: 3 of its 3 shards are done; of the whole run, 3 of 10" in said
    assert numbers(out) == [1, 4, 7]
    assert not (out / "report.json").exists()
    first = json.loads(warm("run", "--out", out, "--rank", 1, "--world-size", 2, "--json").stdout)
    assert first["part"] == {"rank": 1, "world_size": 2, "done": 5, "planned": 5}
    assert (first["rows_done"], first["this_run"]["rows"]) == (5 * 32, 3 * 32)
    assert numbers(out) == [1, 3, 4, 5, 7, 9]
    assert json.loads(warm("status", out, "--json").stdout)["parts_done"] == 6
    assert not (out / "report.json").exists()
    warm("run", "--out", out, "--rank", 0, "--world-size", 2)
    assert parts(out) == whole
    report = json.loads((out / "report.json").read_text())
    assert (report["rows_done"], sum(report["status"].values())) == (SHARDS * 32, SHARDS * 32)
    warm("verify", out)


def test_named_shards_are_divided_among_the_ranks(
    warm: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, listed = tmp_path / "out", tmp_path / "open.txt"
    warm("run", folder, *DEMO, "--shard-size", 32, "--out", out, "--shards", "3,5-6")
    assert numbers(out) == [3, 5, 6]
    listed.write_text("0\n1\n2\n4\n")
    warm("run", "--out", out, "--shards", listed, "--rank", 1, "--world-size", 2)
    assert numbers(out) == [1, 3, 4, 5, 6]
    assert "there is no part 10" in warm("run", "--out", out, "--shards", "10", code=3).stderr
    assert all(whole[name] == content for name, content in parts(out).items())


def test_ranks_that_start_at_the_same_moment_on_a_new_folder_do_everything_once(
    warm: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    torchrun = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in range(2)]
    command = ("run", folder, *DEMO, "--shard-size", 32, "--out", out, "--json")
    ranks = [start(*command, env={**os.environ, **variables}) for variables in torchrun]
    said = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert [json.loads(text)["this_run"]["rows"] for text, _ in said] == [160, 160]
    assert parts(out) == whole
    assert json.loads((out / "report.json").read_text())["rows_done"] == SHARDS * 32


def test_max_bad_counts_only_the_rows_of_the_rank(warm: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("run", folder, *DEMO, "--shard-size", 32, "--out", tmp_path / "out", "--rank", 0, "--world-size", 5)
    assert "--max-bad allows (1)" in warm(*command, "--max-bad", "2%", code=4).stderr
    warm(*command, "--max-bad", "50%")


def test_a_worker_that_fails_once_is_restarted_and_its_error_is_shown(
    cli: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    code = f"""
import pathlib, sys
failed = pathlib.Path({str(tmp_path / "failed")!r})
if "clipbatch.workers.worker_main" in sys.orig_argv and not failed.exists():
    from clipbatch.stages.score import Score
    def fail(self, batch):
        failed.touch()
        raise ArithmeticError("the second number is gone")
    Score.__call__ = fail
"""
    (tmp_path / "sitecustomize.py").write_text(code)
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    made = cli("run", folder, *DEMO, "--shard-size", 32, "--out", tmp_path / "out", env=path)
    said = "ended with exit code 1: ArithmeticError: the second number is gone; restarting it"
    assert said in made.stderr
    assert parts(tmp_path / "out") == whole
