"""A run done by several processes has the same parts as a run done by one."""

import io
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.rundir.layout import RunDir
from tests.conftest import DEMO, Cli, children_of, start
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


def files(out: Path) -> list[Path]:
    return list((out / "parts").glob("part-*.parquet"))


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files(out)}


def numbers(out: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("part-")) for path in files(out))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def listed(whole: dict[str, bytes]) -> list[str]:
    """The names of the good images of the folder."""
    table = pa.concat_tables(pq.read_table(io.BytesIO(whole[name])) for name in sorted(whole))
    return [row["uri"] for row in table.select(["uri", "status"]).to_pylist() if row["status"] == "ok"]


def test_a_rank_does_its_part_first_and_then_what_is_open_of_the_others(
    warm: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, command = tmp_path / "out", ("run", folder, *DEMO, "--shard-size", 32, "--out", tmp_path / "out")
    warm(*command, "--shards", "5")
    array = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_COUNT": "3"}
    made = warm(*command, env={**array, "SLURM_ARRAY_TASK_ID": "1"})
    assert "rank 1 of 3: 3 of its 3 parts are done, and it did 6 of other ranks; of the whole run, 10" in made.stdout
    assert "it helps the other ranks" in made.stderr
    assert parts(out) == whole
    order = [number for _, number in sorted((path.stat().st_mtime_ns, path.name[5:10]) for path in files(out))]
    assert order[:4] == ["00005", "00001", "00004", "00007"]
    assert order[4:] != sorted(order[4:])
    kept = (out / "report.json").read_text()
    report = json.loads(kept)
    assert (report["rows_done"], sum(report["status"].values())) == (SHARDS * 32, SHARDS * 32)
    nothing = json.loads(warm("run", "--out", out, "--rank", 1, "--world-size", 2, "--json").stdout)
    assert nothing["part"] == {"rank": 1, "world_size": 2, "done": 5, "planned": 5}
    assert (nothing["rows_done"], nothing["this_run"]["rows"]) == (5 * 32, 0)
    assert (out / "report.json").read_text() == kept  # of the rank that did something
    for stale in (None, json.dumps(report | {"parts": {"done": 9, "planned": SHARDS}})):
        (out / "report.json").unlink() if stale is None else (out / "report.json").write_text(stale)
        warm("run", "--out", out, "--rank", 1, "--world-size", 2)
        assert json.loads((out / "report.json").read_text())["parts"] == {"done": SHARDS, "planned": SHARDS}
    warm("verify", out)


def test_named_shards_are_divided_among_the_ranks_who_help_with_no_others(
    warm: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, listed = tmp_path / "out", tmp_path / "open.txt"
    warm("run", folder, *DEMO, "--shard-size", 32, "--out", out, "--shards", "3,5-6")
    assert numbers(out) == [3, 5, 6]
    assert not (out / "report.json").exists()
    assert json.loads(warm("status", out, "--json").stdout)["parts_done"] == 3
    listed.write_text("0\n1\n2\n4\n")
    made = json.loads(warm("run", "--out", out, "--shards", listed, "--rank", 1, "--world-size", 2, "--json").stdout)
    assert numbers(out) == [0, 1, 2, 3, 4, 5, 6]
    assert (made["part"]["planned"], made["this_run"]["helped"], made["rows_done"]) == (2, 2, 64)
    made = json.loads(warm("run", "--out", out, "--shards", "3,7,8", "--rank", 0, "--world-size", 3, "--json").stdout)
    assert (made["part"]["done"], made["this_run"]["helped"], numbers(out)) == (1, 2, list(range(9)))  # 3 was done
    assert "there is no part 10" in warm("run", "--out", out, "--shards", "10", code=3).stderr
    assert all(whole[name] == content for name, content in parts(out).items())


@pytest.mark.parametrize("where", ["on a disk", "in a store"])
def test_ranks_that_start_at_the_same_moment_on_a_new_folder_do_everything(
    warm: Cli, folder: Path, whole: dict[str, bytes], bucket: str, tmp_path: Path, where: str
) -> None:
    out = tmp_path / "out" if where == "on a disk" else f"{bucket}/out"
    torchrun = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in range(2)]
    command = ("run", folder, *DEMO, "--shard-size", 32, "--out", out, "--json")
    ranks = [start(*command, env={**os.environ, **variables}) for variables in torchrun]
    said = [process.communicate(timeout=300) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    reports = [json.loads(text) for text, _ in said]
    assert [(report["part"]["done"], report["rows_done"]) for report in reports] == [(5, 160), (5, 160)]
    assert sum(report["this_run"]["rows"] for report in reports) >= SHARDS * 32
    run = RunDir(out)
    assert {run.part(shard, SHARDS).name: run.part(shard, SHARDS).read_bytes() for shard in range(SHARDS)} == whole
    assert json.loads((run.path / "report.json").read_bytes())["rows_done"] == SHARDS * 32


def test_max_bad_counts_only_the_rows_of_the_rank(
    warm: Cli, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    bad = [sum(pq.read_table(io.BytesIO(whole[name]))["status"].to_numpy() != "ok") for name in sorted(whole)]
    own = int(bad[0] + bad[5])
    assert 1 < own < sum(bad)
    command = ("run", folder, *DEMO, "--shard-size", 32, "--out", tmp_path / "out", "--rank", 0, "--world-size", 5)
    assert f"--max-bad allows ({own - 1})" in warm(*command, "--max-bad", own - 1, code=4).stderr
    warm(*command, "--max-bad", own)
    assert parts(tmp_path / "out") == whole  # with the bad rows of the other ranks


def test_a_rank_whose_rows_are_mostly_bad_leaves_the_others_alone(
    warm: Cli, listed: list[str], folder: Path, tmp_path: Path
) -> None:
    """Perhaps its machine does not see the images. It would take every shard, and be done in no time."""
    names = listed[:32]
    rows = [*[f"gone-{name}" for name in names], *names, *[f"lost-{name}" for name in names], *names]
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in rows))
    (given, out) = (tmp_path / "list.txt", "--root", folder, *DEMO, "--shard-size", 32), tmp_path / "out"
    command = ("run", *given, "--out", out, "--world-size", 2)
    made = json.loads(warm(*command, "--rank", 0, "--json").stdout)
    assert (made["status"], numbers(out)) == ({"missing": 64}, [0, 2])
    warm(*command, "--rank", 1)
    assert numbers(out) == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def long_list(folder: Path, listed: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A manifest of over 14,000 rows, as arguments: some seconds of work."""
    path = tmp_path_factory.mktemp("list") / "long.txt"
    path.write_text("".join(f"{name}\n" for name in listed * 50))
    return path, "--root", folder


def test_a_signal_that_ends_a_rank_while_it_helps_is_no_failure(long_list: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    rank = start(*("run", *long_list, *DEMO, "--shard-size", 32, "--out", out, "--rank", 7, "--world-size", 250))
    wait_until(lambda: (out / "parts").is_dir() and len(numbers(out)) > 6)
    rank.send_signal(signal.SIGUSR1)
    said = rank.communicate(timeout=60)
    assert rank.returncode == 0, said
    assert "interrupted by SIGUSR1: finished parts stay, and the same command resumes the run; the part" in said[1]
    assert {7, 257} < set(numbers(out))
    assert re.search(r"rank 7 of 250: 2 of its 2 parts are done, and it did \d+ of other ranks", said[0])


def test_a_rank_that_hangs_holds_up_neither_the_run_nor_itself(
    cli: Cli, long_list: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("run", *long_list, "--limit", 2048, *DEMO, "--shard-size", 32, "--out", out, "--world-size", 2)
    hung = start(*command, "--rank", 0, "--metrics", tmp_path / "hung.prom")
    wait_until(lambda: (out / "parts").is_dir() and len(numbers(out)) > 2)
    (worker,) = children_of(hung.pid)
    os.kill(worker, signal.SIGSTOP)
    before = numbers(out)
    made = json.loads(cli("run", "--out", out, "--rank", 1, "--world-size", 2, "--json").stdout)
    assert numbers(out) == list(range(64))
    assert made["this_run"]["helped"] == 32 - len(before)
    said = hung.communicate(timeout=120)
    assert hung.returncode == 0, said
    assert "rank 0 of 2: 32 of its 32 parts are done; of the whole run, 64 of 64" in said[0]
    metrics = (tmp_path / "hung.prom").read_text()  # what the other rank did counts as done, and once
    rows = {name: re.search(rf"^clipbatch_{name}_rows (.*)$", metrics, re.MULTILINE)[1] for name in ("planned", "done")}
    assert rows == {"planned": "1024.0", "done": "1024.0"}


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
