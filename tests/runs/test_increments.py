"""Nightly increments: new and changed images are labelled once, old rows stay, and two nights do not overlap."""

import fcntl
import json
import os
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import DEMO, Cli, rewrite, rows, start
from tests.support.corpus import make_folder, photo
from tests.support.injected import injected

# The query of docs/guides/increments.md that takes the last row of each image.
NOW = """
select uri, label from (
    select *, row_number() over (partition by uri order by filename desc) as age
    from read_parquet('{out}/*/parts/*.parquet', filename = true)
) where age = 1 order by uri
"""


def draw(path: Path, seed: int) -> None:
    photo(np.random.default_rng(seed), 60, 40).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path / "in", 40, seed=6, bad_fraction=0.1)
    return tmp_path / "in"


def runs(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.is_dir())


def test_each_night_labels_what_is_new_or_changed_and_keeps_the_old_rows(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dataset"
    command = ("run", folder, *DEMO, "--incremental", "--out", out)
    assert "40 new images, 0 changed, 0 known" in warm(*command).stdout
    (first,) = runs(out)
    before = rows(first)
    assert "nothing is new or changed: 40 images are known" in warm(*command).stdout
    assert runs(out) == [first]
    draw(folder / "new.jpg", 1)
    changed = sorted(folder.rglob("*.jpg"))[0]
    draw(changed, 2)
    said = json.loads(warm(*command, "--json").stdout)
    _, second = runs(out)
    assert said["increment"] == {"folder": str(second), "new": 1, "changed": 1, "known": 39}
    assert sorted(rows(second)["uri"].to_pylist()) == sorted([str(folder / "new.jpg"), str(changed)])
    assert rows(first).equals(before)
    for made in (first, second):
        warm("verify", made)
    warm("run", folder, *DEMO, "--out", tmp_path / "anew")
    now = duckdb.sql(NOW.format(out=out)).fetchall()
    found = rows(tmp_path / "anew").sort_by("uri")
    assert now == list(zip(found["uri"].to_pylist(), found["label"].to_pylist(), strict=True))
    stamps = rows(second).to_pylist()[0]
    assert stamps["file_bytes"] == os.stat(stamps["uri"]).st_size
    assert stamps["file_modified"].timestamp() == pytest.approx(os.stat(stamps["uri"]).st_mtime, abs=1e-3)


def test_contents_may_be_compared_instead_of_size_and_time(warm: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("run", folder, *DEMO, "--incremental", "--hash-contents", "--out", tmp_path / "dataset")
    warm(*command)
    touched, rewritten = sorted(folder.rglob("*.jpg"))[:2]
    os.utime(touched)
    size, times = rewritten.stat().st_size, rewritten.stat()
    data = bytearray(rewritten.read_bytes())
    data[size // 2] ^= 1
    rewritten.write_bytes(data)
    os.utime(rewritten, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "0 new images, 1 changed, 39 known" in warm(*command).stdout


def test_an_increment_that_was_interrupted_is_finished_first(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    command = ("run", folder, *DEMO, "--shard-size", 4, "--batch-size", 4, "--incremental", "--out", out)
    process = start(*command)
    while not list(out.glob("*/parts/*.parquet")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    draw(folder / "new.jpg", 1)
    assert "1 new images, 0 changed, 40 known" in warm(*command).stdout
    assert [rows(path).num_rows for path in runs(out)] == [40, 1]


def test_settings_of_an_invocation_apply_and_other_folders_are_refused(warm: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("run", folder, *DEMO, "--incremental", "--out")
    warm(*command, tmp_path / "dataset", "--decode-threads", 3)
    (made,) = runs(tmp_path / "dataset")
    report = json.loads((made / "report.json").read_text())
    assert report["this_run"]["stages"]["decode"]["threads"] == 3
    assert f"so name a run in it: {made}" in warm("evaluate", tmp_path / "dataset", "--truth", "x", code=3).stderr
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "dataset"):
        assert "a file is in the way: choose another --out" in warm(*command, out, code=3).stderr


def test_two_nights_do_not_overlap(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    out.mkdir()
    with open(out / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = warm("run", folder, *DEMO, "--incremental", "--out", out, code=6).stderr
    assert f"another process is making an increment in {out}" in said
    assert runs(out) == []


def test_other_settings_than_those_of_the_dataset_are_refused(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    warm("run", folder, *DEMO, "--incremental", "--out", out)
    draw(folder / "new.jpg", 1)
    other = ("run", folder, "--model", "clipbatch-demo", "--labels", "cat,dog", "--incremental", "--out", out)
    said = warm(*other, code=3).stderr
    assert "labels is" in said
    assert said.endswith("choose another --out, or give the same settings\n")  # --incremental refuses --overwrite
    assert len(runs(out)) == 1
    warm("run", folder, *DEMO, "--out", tmp_path / "plain")
    said = warm("run", folder, *DEMO, "--incremental", "--out", tmp_path / "plain", code=3).stderr
    assert "is not a dataset of increments" in said


def test_one_line_output_and_prometheus_metrics(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out, metrics = tmp_path / "dataset", tmp_path / "clipbatch.prom"
    command = ("run", folder, *DEMO, "--incremental", "--one-line", "--metrics", metrics, "--out", out)
    made = warm(*command)
    assert made.stderr == ""
    (line,) = made.stdout.splitlines()
    statuses = rows(runs(out)[0])["status"].to_pylist()
    images = f"40 images (40 new, 0 changed, 0 known): {statuses.count('ok')} ok, "
    assert line.startswith(
        f"{out}/increment-00001: {100 - statuses.count('ok') * 2.5:.3g}% of the images are bad; {images}"
    )
    families = {family.name: family for family in text_string_to_metric_families(metrics.read_text())}
    counted = {sample.labels["status"]: sample.value for sample in families["clipbatch_rows"].samples}
    assert counted == {status: statuses.count(status) for status in set(statuses)}
    assert abs(families["clipbatch_last_success_timestamp_seconds"].samples[0].value - time.time()) < 300
    (line,) = warm(*command).stdout.splitlines()
    assert line == f"{out}: nothing new, 40 images known"
    said = warm(*command[:-4], "--metrics", tmp_path / "gone" / "x.prom", "--out", out, code=3).stderr
    assert "cannot write" in said


def test_a_dataset_is_scored_again_increment_by_increment(warm: Cli, tmp_path: Path) -> None:
    out, again = tmp_path / "dataset", tmp_path / "again"
    make_folder(tmp_path / "in", 6, seed=9, bad_fraction=0.2)
    for night in (1, 2):
        draw(tmp_path / "in" / f"new-{night}.jpg", night)
        warm("run", tmp_path / "in", *DEMO, "--embeddings", "--incremental", "--out", out)
    command = ("rescore", out, "--labels", "cat,dog", "--out", again)
    assert warm(*command).stdout.count("clipbatch report") == 2
    assert [path.name for path in runs(again)] == ["increment-00001", "increment-00002"]
    for old, new in zip(runs(out), runs(again), strict=True):
        before, after = rows(old), rows(new)
        assert after.select(["row_id", "uri", "status"]).equals(before.select(["row_id", "uri", "status"]))
        assert set(after["label"].drop_null().to_pylist()) <= {"cat", "dog"}
        warm("verify", new)
    index, scored = (pq.read_table(folder / "latest.parquet") for folder in (out, again))
    assert scored.equals(index)
    before = [path.stat().st_mtime_ns for path in again.rglob("part-*.parquet")]
    (again / "deleted.parquet").write_bytes(b"of a time when the dataset had one")
    assert warm(*command).stdout.count("nothing was left to do") == 2
    assert not (again / "deleted.parquet").exists()
    assert [path.stat().st_mtime_ns for path in again.rglob("part-*.parquet")] == before
    # A dataset with nights and marks of its own keeps these.
    (own := tmp_path / "own").mkdir()
    (own / ".highest").write_text("2")
    marking = ("run", tmp_path / "in", *DEMO, "--incremental", "--mark-deleted", "--confirm-deleted")
    warm(*marking, "--out", own)
    (tmp_path / "in" / "new-1.jpg").unlink()
    warm(*marking, "--out", own)
    marks = (own / "deleted.parquet").read_bytes()
    (tmp_path / "in" / "new-2.jpg").unlink()
    warm(*marking, "--embeddings", "--out", out)
    said = warm(*command[:-1], own).stderr
    deleted, third = out / "deleted.parquet", own / "increment-00003"
    assert f"note: the marks in {deleted} are not taken over, since {third} was not made by rescoring" in said
    assert (own / "deleted.parquet").read_bytes() == marks
    assert pq.read_table(own / "latest.parquet")["increment"].unique().to_pylist() == ["increment-00003"]


def test_later_increments_take_over_what_the_first_one_chose_and_measured(cli: Cli, warm: Cli, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "dataset"
    folder.mkdir()
    command = ("run", folder, *DEMO, "--decoder", "dali", "--incremental", "--out", out)
    draw(folder / "first.jpg", 5)
    warm(*command)
    (first,) = runs(out)
    # As on a machine where DALI was not fit, and had been chosen by `auto`.
    rewrite(first / "model.json", lambda value: value.update(decoder="torchvision"))
    for number in range(2):
        draw(folder / f"{number}.jpg", number)
        warm(*command)
    for later in runs(out)[1:]:
        assert json.loads((later / "run.json").read_text())["fitted"] == {"decoder": "torchvision"}
        assert json.loads((later / "model.json").read_text())["decoder"] == "torchvision"
        assert set(rows(later)["decoder"].to_pylist()) == {"torchvision"}
        assert "every one there once" in warm("verify", later).stdout
    assert len(runs(out)) == 3
    # The other way round, a machine that cannot do what the first one did is refused by name.
    rewrite(runs(out)[-1] / "model.json", lambda value: value.pop("decoder"))
    draw(folder / "last.jpg", 7)
    missing = injected(tmp_path / "fault", {"clipbatch.stages.decode.dali": "raise ImportError('no nvidia.dali')"})
    refused = cli(*command, env=missing, code=3).stderr
    assert "--decoder dali: dali cannot be used on this CPU: it is not installed" in refused
    assert list((runs(out)[-1] / "parts").iterdir()) == []
