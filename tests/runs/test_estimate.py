"""--sample and estimate: what is drawn, and what an estimate says of the run that follows."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipbatch.config.sampling import keys
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder

FILES = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate") / "in"
    make_folder(folder, FILES, seed=12, bad_fraction=0.2)
    return folder


def test_a_sample_is_drawn_from_all_of_the_listing_in_its_order(warm: Cli, folder: Path, tmp_path: Path) -> None:
    warm("plan", folder, *DEMO, "--out", tmp_path / "all")
    warm("run", folder, *DEMO, "--sample", 60, "--out", tmp_path / "some")
    drawn = rows(tmp_path / "some")["uri"].to_pylist()
    listing = pq.read_table(tmp_path / "all" / "manifest")["uri"].to_pylist()
    at = [listing.index(uri) for uri in drawn]
    assert len(set(at)) == 60
    assert at == sorted(at)
    assert min(at) < FILES / 4 < 3 * FILES / 4 < max(at)
    warm("run", folder, *DEMO, "--sample", 60, "--out", tmp_path / "some")  # the same command goes on with it
    warm("plan", folder, *DEMO, "--sample", 60, "--seed", 1, "--out", tmp_path / "other")
    other = pq.read_table(tmp_path / "other" / "manifest")["uri"].to_pylist()
    assert other != drawn
    warm("plan", folder, *DEMO, "--sample", 10**6, "--out", tmp_path / "whole")
    assert pq.read_table(tmp_path / "whole" / "manifest")["uri"].to_pylist() == listing
    another = ("--sample", 60, "--seed", 1, "--out", tmp_path / "some")
    assert "seed is 1 now" in warm("run", folder, *DEMO, *another, code=3).stderr


def test_a_sample_is_uniform() -> None:
    drawn: Counter[int] = Counter()
    for seed in range(2000):
        drawn.update(np.argsort(keys(np.arange(50), seed))[:10].tolist())
    counts = np.array([drawn[number] for number in range(50)])
    expected = 2000 * 10 / 50
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 85  # 99.9% of uniform ones, with 49 degrees of freedom


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--sample", 5, "--limit", 5), "sample 5 and limit 5 both say how many rows"),
        (("--seed", 5), "seed 5 is for sample"),
        (("--sample", 0), "sample 0 is out of range"),
        (("--sample", 5, "--incremental"), "--incremental adds all that is new"),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(
    warm: Cli, folder: Path, tmp_path: Path, args: tuple[object, ...], message: str
) -> None:
    assert message in warm("run", folder, *DEMO, *args, "--out", tmp_path / "out", code=3).stderr
    assert not (tmp_path / "out").exists()


def test_an_estimate_says_what_the_run_then_has(warm: Cli, folder: Path, tmp_path: Path) -> None:
    found = json.loads(warm("estimate", folder, *DEMO, "--seconds", 20, "--json").stdout)
    warm("run", folder, *DEMO, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["rows"] == report["rows"] == found["sample_rows"] == FILES  # all of it, in this time
    bad = 1 - report["status"]["ok"] / FILES
    assert found["bad"]["value"] == pytest.approx(bad)
    assert found["bad"]["low"] < bad < found["bad"]["high"]
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "parts").iterdir())
    assert found["bytes"] == pytest.approx(size, rel=0.25)
    assert found["images_per_s"] > 0
    assert found["hours"] > 0
    assert any("says nothing of how fast a GPU would be" in note for note in found["notes"])


def test_an_estimate_ends_when_its_seconds_are_over_and_leaves_nothing(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "\n".join(str(path) for path in sorted(folder.rglob("*.jpg")) * 200)
    (tmp_path / "m.txt").write_text(names)
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    args = ("estimate", tmp_path / "m.txt", *DEMO, "--seconds", 3, "--gpus", 4)
    made = cli(*args, env=environment)
    assert f"rows          {len(names.splitlines()):,}" in made.stdout
    sample = int(made.stdout.split("sample")[1].split()[0].replace(",", ""))
    assert 0 < sample < len(names.splitlines())
    assert not list((tmp_path / "tmp").iterdir())


def test_an_estimate_takes_what_is_left_of_a_plan(warm: Cli, folder: Path, tmp_path: Path) -> None:
    warm("run", folder, *DEMO, "--shard-size", 32, "--shards", "0-4", "--out", tmp_path / "out")
    found = json.loads(warm("estimate", "--plan", tmp_path / "out", "--seconds", 20, "--json").stdout)
    assert found["rows"] == FILES - 5 * 32
    assert "name an INPUT to estimate, or a run directory" in warm("estimate", code=3).stderr
    assert "--gpus all: for an estimate" in warm("estimate", folder, *DEMO, "--gpus", "all", code=3).stderr
