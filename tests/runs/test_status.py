"""What `clipbatch status` says: rows, bad ones, rates, who is at work, what is next; of runs, stores and datasets."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipbatch.rundir import activity
from clipbatch.rundir.counts import CACHE
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import pace, status
from clipbatch.workers import tally
from tests.conftest import DEMO, Cli, rows, start
from tests.support.corpus import make_folder, photo

SHARDS, SHARD = 6, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, SHARDS * SHARD, seed=12, bad_fraction=0.1)
    return folder


@pytest.fixture(scope="module")
def whole(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave its parts as they are."""
    out = tmp_path_factory.mktemp("whole") / "out"
    warm("run", folder, *DEMO, "--shard-size", SHARD, "--out", out)
    return out


def found(warm: Cli, out: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(warm("status", out, "--json").stdout)
    return result


def test_a_finished_run_says_what_is_in_its_parts(warm: Cli, whole: Path) -> None:
    said = found(warm, whole)
    counts = rows(whole)["status"].value_counts().to_pylist()
    assert said["status"] == {entry["values"]: entry["counts"] for entry in counts}
    assert (said["rows"], said["rows_done"], said["parts"], said["parts_counted"]) == (192, 192, SHARDS, SHARDS)
    assert said["complete"]
    assert (said["at_work"], said["left_s"], said["parts_failed"]) == ([], None, [])
    assert said["next_step"] == f"clipbatch report {whole}"
    assert not (whole / activity.FOLDER).exists()
    lines = warm("status", whole).stdout.splitlines()
    assert lines[:5] == [f"{name:14} {said[name]}" for name in ("rows", "rows_done", "parts", "parts_done", "complete")]


def test_rows_are_counted_as_time_allows_and_what_was_counted_is_kept(
    warm: Cli, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole / CACHE).unlink()
    monkeypatch.setattr(status, "FOOTERS_S", 0.0)
    said = found(warm, whole)
    assert (said["rows_done"], said["parts_counted"], said["status"]) == (192, 0, {})
    assert f"{'images':14} none counted" in warm("status", whole).stdout
    monkeypatch.setattr(status, "FOOTERS_S", 60.0)
    assert found(warm, whole)["parts_counted"] == SHARDS
    monkeypatch.setattr(status, "FOOTERS_S", 0.0)
    assert found(warm, whole)["parts_counted"] == SHARDS
    warm("verify", whole)


def test_a_run_at_work_says_who_works_how_fast_and_for_how_long(
    warm: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((activity, "EVERY_S", 0.0), (tally, "MIN_RATE_S", 0.0)):
        monkeypatch.setattr(module, name, value)
    out, seen, over = tmp_path / "out", list[status.Status](), threading.Event()
    warm("plan", folder, *DEMO, "--shard-size", SHARD, "--out", out)
    assert found(warm, out)["next_step"] == f"clipbatch run --out {out}"

    def look() -> None:
        while not over.is_set():
            seen.append(status.status(str(out)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        warm("run", "--out", out)
    finally:
        over.set()
        watcher.join()
    at_work = [one for one in seen if one["at_work"]]
    assert at_work
    for one in at_work:
        (worker,) = one["at_work"]
        assert (worker["host"], worker["pid"], worker["rank"]) == (socket.gethostname(), os.getpid(), 0)
        assert worker["devices"] == ["cpu"]
        assert 0 <= worker["heard_s_ago"] < activity.EXPIRES_S
        assert worker["rows"] <= 192
        assert "clipbatch status" in one["next_step"]
        if worker["images_per_s"]:
            assert one["left_s"] is not None or one["complete"]
            assert worker["bottleneck"]
    assert any(one["images_per_s"] for one in at_work)
    final = found(warm, out)
    most = max((one["at_work"][0]["rows"], one["at_work"][0]["bad"]) for one in at_work if one["at_work"][0]["rows"])
    assert all(count <= final["status"][name] for name, count in most[1].items())
    assert (final["at_work"], final["complete"]) == ([], True)
    assert not (out / activity.FOLDER).exists()


def test_a_killed_run_is_at_work_until_its_word_expires_and_harms_nothing(
    warm: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = start("run", folder, *DEMO, "--shard-size", SHARD, "--out", out, start_new_session=True)
    while not list((out / activity.FOLDER).glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (worker,) = found(warm, out)["at_work"]
    assert worker["pid"] == process.pid
    monkeypatch.setattr(activity, "EXPIRES_S", 0.0)
    said = found(warm, out)
    assert (said["at_work"], said["next_step"]) == ([], f"clipbatch run --out {out}")
    monkeypatch.setattr(activity, "_FORGOTTEN_S", 0.0)
    warm("run", "--out", out)
    assert not (out / activity.FOLDER).exists()
    warm("verify", out)


def test_only_what_ended_processes_of_this_very_host_said_is_removed(tmp_path: Path) -> None:
    folder, host = tmp_path / activity.FOLDER, socket.gethostname()
    folder.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = {f"{host}-{ended.pid}-4711-1234abcd.json", f"{host}-{os.getpid()}-1234abcd.json", f"x-{ended.pid}-1a.json"}
    for name in (*kept, f"{host}-{ended.pid}-1234abcd.json"):
        (folder / name).write_text("{}")
    activity.tidy(RunDir(tmp_path))
    assert set(os.listdir(folder)) == kept


def test_what_others_wrote_into_the_folder_is_not_trusted(
    warm: Cli, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(whole)
    entry = activity.Entry(
        plan=run.plan().fingerprint,
        host="elsewhere",
        pid=7,
        rank=3,
        world_size=8,
        devices=["cuda:0"],
        since=time.time() - 60,
        time=time.time(),
        rows=100,
        bad={"missing": 3},
        images_per_s=12.5,
        bottleneck="decode",
        deaths={"2": 1, "99": 1, "x": 4},
    )
    activity.write(run, "good.json", entry)
    good = json.loads((whole / activity.FOLDER / "good.json").read_bytes())
    spoiled: list[Any] = [good | {name: [{}]} for name in good]
    spoiled += [{}, [], None, good | {"plan": "another"}, good | {"time": time.time() - 1000}, good | {"rows": -1}]
    for number, value in enumerate(spoiled):
        (whole / activity.FOLDER / f"{number}.json").write_text(json.dumps(value))
    for number, content in enumerate((b"", b"\xff", b"[" * 100_000, b"{" + b" " * 2**20)):
        (whole / activity.FOLDER / f"raw-{number}.json").write_bytes(content)
    (whole / activity.FOLDER / "folder.json").mkdir()
    try:
        (worker,) = found(warm, whole)["at_work"]
        assert (worker["host"], worker["rank"], worker["rows"], worker["bad"]) == ("elsewhere", 3, 100, {"missing": 3})
        assert "elsewhere, pid 7, rank 3 of 8 on cuda:0 since" in warm("status", whole).stdout
        warm("verify", whole)
        warm("compact", whole, "--out", tmp_path / "compact")
        part = whole / "parts" / "part-00002.parquet"
        part.rename(tmp_path / "aside")
        said = found(warm, whole)
        assert (said["parts_failed"], said["images_per_s"], said["left_s"]) == ([2], 12.5, round(SHARD / 12.5, 1))
        (tmp_path / "aside").rename(part)
    finally:
        (whole / activity.FOLDER / "folder.json").rmdir()
        for path in (whole / activity.FOLDER).iterdir():
            path.unlink()
        (whole / activity.FOLDER).rmdir()


def test_a_run_in_a_store_says_the_same(
    warm: Cli, folder: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{bucket}/out"
    warm("run", folder, *DEMO, "--shard-size", SHARD, "--limit", 2 * SHARD, "--out", out)
    said = found(warm, out)
    assert (said["rows_done"], said["parts_counted"], said["complete"], said["at_work"]) == (64, 2, True, [])
    run = RunDir(out)
    entry = {"rank": 0, "world_size": 1, "devices": [], "since": time.time(), "time": time.time(), "rows": 5}
    activity.write(run, "x.json", activity.Entry(plan=run.plan().fingerprint, host="far", pid=1, **entry))  # type: ignore[arg-type]
    assert [worker["host"] for worker in found(warm, out)["at_work"]] == ["far"]
    warm("verify", out)
    activity.remove(run, "x.json")
    assert found(warm, out)["at_work"] == []


def test_a_dataset_is_answered_as_a_whole(warm: Cli, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "dataset"
    make_folder(folder, 40, seed=6, bad_fraction=0.1)
    command = ("run", folder, *DEMO, "--incremental", "--out", out)
    warm(*command)
    photo(np.random.default_rng(1), 60, 40).save(folder / "new.jpg")
    warm(*command)
    first, second = sorted(path for path in out.iterdir() if path.is_dir())
    said = found(warm, out)
    assert (said["rows"], said["rows_done"], said["parts"], said["complete"]) == (41, 41, 2, True)
    assert [(each["folder"], each["rows"]) for each in said["increments"]] == [(str(first), 40), (str(second), 1)]
    assert sum(said["status"].values()) == 41
    assert f"{out}: 41 rows in 2 parts of 2 increments, every one there once" in warm("verify", out).stdout
    (part,) = (second / "parts").iterdir()
    part.unlink()
    said = found(warm, out)
    assert (said["rows_done"], said["complete"]) == (40, False)
    assert said["next_step"] == f"clipbatch run --out {second}"
    wrong = warm("verify", out, "--json", code=5)
    assert json.loads(wrong.stdout) == {"rows": 41, "parts": 2, "problems": [f"{part}: missing"]}
    assert f"remedy: clipbatch run --out {second}\n" in wrong.stderr
    warm(*command)
    warm("verify", out)
    for path in (first, second):
        path.rename(tmp_path / path.name)
    (out / "increment-00003").mkdir()
    for name in ("status", "verify", "report"):
        assert f"{out} holds no increment yet" in warm(name, out, code=3).stderr


def test_watching_ends_with_the_run(cli: Cli, warm: Cli, folder: Path, whole: Path, tmp_path: Path) -> None:
    assert json.loads(warm("status", whole, "--watch", "--json").stdout)["complete"]
    warm("plan", folder, *DEMO, "--out", tmp_path / "out")
    process = start("status", tmp_path / "out", "--watch")
    assert process.stdout
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert first.split() == ["rows", "192"]
    process.communicate()
    assert process.returncode == 0


@pytest.fixture
def published() -> list[tuple[float, int]]:
    """A part of 60 rows every 30 seconds, for an hour, and after a pause of nine hours for an hour again."""
    first = [(1e9 + 30.0 * number, 60) for number in range(121)]
    return first + [(at + 10 * 3600.0, count) for at, count in first]


def test_the_rate_over_all_leaves_pauses_out(published: list[tuple[float, int]]) -> None:
    assert pace.overall(published) == pytest.approx(2.0)
    assert pace.overall(published[::-1]) == pytest.approx(2.0)
    assert pace.overall(published[:1]) is None
    assert pace.overall([(1e9, 60)] * 50) is None  # a copy that did not keep the files' times
    assert pace.overall([(1e9, 60), (1e9 + 1, 60)]) is None  # too short to have a rate
