"""Increments that were deleted, interrupted or damaged: all images are labelled still, and numbers go on."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import DEMO, Cli
from tests.support.history import Version, death, encoded, rows_of, set_time, shape

SMALL = ("--batch-size", 4, "--shard-size", 4, "--incremental")


class Dataset:
    """Images in `root/in`, six for each of three nights, and the dataset of these nights."""

    def __init__(self, warm: Cli, root: Path) -> None:
        self.warm, self.images, self.out = warm, root / "in", root / "dataset"
        self.images.mkdir()
        self.command = ("run", self.images, *DEMO, *SMALL, "--out", self.out)
        for night in range(3):
            for number in range(6):
                self.put(f"{night}{number}.jpg", 10 * night + number + 10)
            self.night()

    def put(self, name: str, content: int, time_s: float = 1.6e9) -> None:
        (self.images / name).write_bytes(encoded(Version(content=content, time_ns=0)))
        set_time(self.images / name, int(time_s * 1e9))

    def night(self, *more: object) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.warm(*self.command, "--json", *more).stdout)
        return made

    def names(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir() if path.is_dir())

    def last(self) -> dict[str, dict[str, Any]]:
        """The last row of each image."""
        return {Path(row["uri"]).name: row for name in self.names() for row in rows_of(self.out / name)}


@pytest.fixture
def dataset(warm: Cli, tmp_path: Path) -> Dataset:
    return Dataset(warm, tmp_path)


@pytest.mark.parametrize("gone", [[1], [2], [3], [1, 2], [2, 3], [1, 2, 3]])
def test_after_increments_were_removed_what_is_new_and_what_they_had_is_labelled(
    dataset: Dataset, tmp_path: Path, gone: list[int]
) -> None:
    for number in gone:
        shutil.rmtree(dataset.out / f"increment-{number:05d}")
    dataset.put("new.jpg", 1)
    metrics = tmp_path / "clipbatch.prom"
    said = dataset.night("--metrics", metrics)
    new = 6 * len(gone) + 1
    assert said["increment"] == {
        "folder": str(dataset.out / "increment-00004"), "new": new, "changed": 0, "known": 19 - new
    }  # fmt: skip
    assert said["rows_done"] == new
    families = {family.name: family.samples for family in text_string_to_metric_families(metrics.read_text())}
    assert families["clipbatch_increment_new_rows"][0].value == new
    assert families["clipbatch_labelled_rows"][0].value == new
    assert set(dataset.last()) == {path.name for path in dataset.images.iterdir()}
    assert "nothing is new or changed: 19 images are known" in dataset.warm(*dataset.command).stdout


def test_names_go_on_from_the_highest_that_there_ever_was(dataset: Dataset) -> None:
    shutil.rmtree(dataset.out / "increment-00003")
    dataset.night()
    shutil.rmtree(dataset.out / "increment-00004")
    (dataset.out / "increment-00007").mkdir()
    (dataset.out / "increment-00007" / "notes.txt").touch()
    assert dataset.night()["increment"]["folder"] == str(dataset.out / "increment-00008")
    (dataset.out / ".highest").write_text("nonsense")
    dataset.put("new.jpg", 1)
    assert dataset.night()["increment"]["folder"] == str(dataset.out / "increment-00009")
    assert (dataset.out / "increment-00007" / "notes.txt").exists()


def test_the_folder_of_a_killed_planner_is_used_again(dataset: Dataset) -> None:
    names = set(dataset.names())
    for number in range(8):
        dataset.put(f"new-{number}.jpg", 40 + number)
        assert death().during(dataset.out, 4 * number, lambda: dataset.warm(*dataset.command))
    dataset.night()
    plans = {name for name in dataset.names() if (dataset.out / name / "run.json").exists()}
    assert plans > names
    assert plans == set(dataset.names())
    assert len(dataset.last()) == 18 + 8


def test_an_interrupted_increment_is_finished_after_older_ones_were_removed(dataset: Dataset, tmp_path: Path) -> None:
    dataset.put("new.jpg", 1)
    dataset.night()
    for name in ("increment-00001", "increment-00002"):
        shutil.rmtree(dataset.out / name)
    next((dataset.out / "increment-00003" / "parts").glob("part-00001*")).unlink()
    next((dataset.out / "increment-00004" / "parts").glob("part-00000*")).unlink()
    metrics = tmp_path / "clipbatch.prom"
    (line,) = dataset.warm(*dataset.command, "--one-line", "--metrics", metrics).stdout.splitlines()
    assert line.startswith(f"{dataset.out}/increment-00005: 12 images (12 new, 0 changed, 7 known): ")
    assert f"; finished first: {dataset.out}/increment-00003, 6 images: " in line
    assert f"; finished first: {dataset.out}/increment-00004, 1 images: " in line
    families = {family.name: family.samples for family in text_string_to_metric_families(metrics.read_text())}
    assert families["clipbatch_labelled_rows"][0].value == 2 + 1 + 12
    assert sum(sample.value for sample in families["clipbatch_rows"]) == 6 + 1 + 12
    next((dataset.out / "increment-00005" / "parts").glob("part-00000*")).unlink()
    said = dataset.warm(*dataset.command).stdout
    assert f"finished first: {dataset.out}/increment-00005, 12 images: " in said
    assert "nothing is new or changed: 19 images are known" in said


def test_an_image_that_is_put_back_as_it_was_gets_its_old_labels_again(dataset: Dataset) -> None:
    dataset.put("00.jpg", 50, time_s=1.7e9)
    dataset.night()
    assert (dataset.last()["00.jpg"]["width"], dataset.last()["00.jpg"]["height"]) == shape(50)
    dataset.put("00.jpg", 10)
    assert dataset.night()["increment"]["changed"] == 1
    assert (dataset.last()["00.jpg"]["width"], dataset.last()["00.jpg"]["height"]) == shape(10)
    assert dataset.night()["increment"]["folder"] is None


def test_an_image_that_was_away_when_it_was_to_be_read_is_labelled_when_it_is_back(dataset: Dataset) -> None:
    dataset.put("new.jpg", 1)
    changes = 0
    while not (dataset.out / "increment-00004" / "run.json").exists():
        changes += 1
        death().during(dataset.out, changes, lambda: dataset.warm(*dataset.command))
    aside = (dataset.images / "new.jpg").rename(dataset.images.parent / "new.jpg")
    (finished,) = dataset.night()["finished"]
    assert finished["status"] == {"missing": 1}
    aside.rename(dataset.images / "new.jpg")
    assert dataset.night()["increment"]["changed"] == 1
    assert dataset.last()["new.jpg"]["status"] == "ok"
    assert dataset.night()["increment"]["folder"] is None


def test_an_archive_that_is_exchanged_is_read_anew_by_the_next_run_of_a_process(warm: Cli, tmp_path: Path) -> None:
    for content in (1, 2):
        (tmp_path / "a.jpg").write_bytes(encoded(Version(content=content, time_ns=0)))
        set_time(tmp_path / "a.jpg", 0)  # so that the headers are the same
        with tarfile.open(tmp_path / "new.tar", "w") as tar:
            tar.add(tmp_path / "a.jpg", "a.jpg")
        (tmp_path / "new.tar").rename(tmp_path / "in.tar")
        warm("run", tmp_path / "in.tar", *DEMO, "--out", tmp_path / str(content))
        (row,) = rows_of(tmp_path / str(content))
        assert (row["width"], row["height"]) == shape(content)


def test_an_increment_that_cannot_be_compared_is_refused_with_the_remedy(dataset: Dataset, warm: Cli) -> None:
    def refused() -> str:
        said: str = warm(*dataset.command, code=3).stderr
        return said

    first = dataset.out / "increment-00001"
    manifest = first / "manifest" / "part-00000.parquet"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert (
        f"the manifest {manifest} was changed after the run was planned: restore it, or delete the increment"
        in refused()
    )
    manifest.unlink()
    assert f"cannot read the manifest {manifest}: No such file or directory; restore it, or delete" in refused()
    manifest.write_bytes(content)
    plan = (first / "run.json").rename(dataset.out.parent / "run.json")
    assert f"{first} holds results but no run.json: restore that file, or delete the folder" in refused()
    assert (
        "holds results but no run.json"
        in warm("compact", dataset.out, "--out", dataset.out.parent / "few", code=3).stderr
    )
    plan.rename(first / "run.json")
    assert dataset.night()["increment"]["known"] == 18
    warm("run", dataset.images, *DEMO, *SMALL[:-1], "--out", dataset.out / "increment-00004")
    assert "increment-00004 was not made with --incremental, as" in refused()
    shutil.rmtree(dataset.out / "increment-00004")
    (dataset.out / "increment-4").mkdir()
    assert "holds 'increment-4', so it is not a dataset" in refused()


def test_a_damaged_part_is_named_with_the_command_that_repairs_it(dataset: Dataset, warm: Cli) -> None:
    first = next((dataset.out / "increment-00001" / "parts").glob("part-00000*"))
    first.write_bytes(first.read_bytes()[:-20])
    said = warm(*dataset.command, code=3).stderr
    assert f"{first} is damaged: clipbatch run --out {dataset.out}/increment-00001 --repair" in said
    warm("run", "--out", dataset.out / "increment-00001", "--repair")
    assert dataset.night()["increment"]["known"] == 18
    assert pq.read_table(first).num_rows == 4
