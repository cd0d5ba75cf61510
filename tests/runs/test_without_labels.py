"""Runs without labels: what each command shows, and labels that come later, from saved embeddings."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import clipbatch
from tests.conftest import Cli, rows
from tests.support.corpus import make_folder

FILES, SHARD = 80, 32
MODEL = ("--model", "clipbatch-demo", "--batch-size", 16, "--shard-size", SHARD)
FACTS = ["row_id", "uri", "status", "error", "width", "height", "decoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, FILES, seed=12, bad_fraction=0.2)
    return folder


@pytest.fixture(scope="module")
def run(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    said = warm("run", folder, *MODEL, "--embeddings", "--out", out).stdout
    assert f"{FILES} images: 64 ok" in said
    assert f"results: {out}/parts/*.parquet" in said
    return out


def test_the_columns_are_those_of_the_image_and_its_embedding(
    warm: Cli, folder: Path, run: Path, tmp_path: Path
) -> None:
    table = rows(run)
    assert table.column_names == [*FACTS, "embedding"]
    assert json.loads(table.schema.metadata[b"clipbatch.labels"]) == {}
    warm("run", folder, *MODEL, "--embeddings", "--labels", "cat,dog", "--out", tmp_path / "labelled")
    assert rows(tmp_path / "labelled")["embedding"].equals(table["embedding"])
    ok = [status == "ok" for status in table["status"].to_pylist()]
    assert table["embedding"].is_valid().to_pylist() == ok
    text = np.load(run / "text.npy")
    assert text.shape == (0, table["embedding"].type.list_size)


def test_every_command_takes_the_run(warm: Cli, run: Path, tmp_path: Path) -> None:
    status = json.loads(warm("status", run, "--json").stdout)
    assert (status["complete"], status["rows_done"]) == (True, FILES)
    assert f"{FILES} rows in 3 parts" in warm("verify", run).stdout
    report = json.loads((run / "report.json").read_text())
    assert report["warnings"] == []
    assert "captions" not in report
    warm("compact", run, "--out", tmp_path / "compact")
    warm("verify", tmp_path / "compact")
    warm("compact", run, "--flat", "--out", tmp_path / "files")
    (file,) = (tmp_path / "files").iterdir()
    assert pq.read_table(file).equals(rows(run))
    warm("report", run, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"{FILES} images embedded by" in page
    assert not any(name in page for name in ('id="labels"', 'id="scores"', 'id="examples"', 'id="captions"'))
    assert 'id="statuses"' in page
    assert "has no labels" in warm("evaluate", run, "--truth", "folder", code=3).stderr
    assert "has no labels" in warm("review", run, "--random", 3, "--out", tmp_path / "review.csv", code=3).stderr


def test_damage_is_found_and_repaired_as_in_any_run(warm: Cli, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in (run / "parts").iterdir()}
    (run / "text.npy").write_bytes(b"?")
    warm("verify", run, code=3)
    assert "restored" in warm("verify", run, "--restore").stderr
    (run / "parts" / "part-00001.parquet").write_bytes(b"PAR1")
    warm("run", "--out", run, "--repair")
    assert {path.name: path.read_bytes() for path in (run / "parts").iterdir()} == before


def test_labels_may_come_later(warm: Cli, folder: Path, run: Path, tmp_path: Path) -> None:
    warm("rescore", run, "--labels", "cat,dog,ship", "--out", tmp_path / "later")
    warm("run", folder, *MODEL, "--labels", "cat,dog,ship", "--embeddings", "--out", tmp_path / "at-once")
    later, at_once = rows(tmp_path / "later"), rows(tmp_path / "at-once")
    assert later.equals(at_once.drop_columns(["embedding"]))
    assert (
        "give --labels, --caption-column or --head" in warm("rescore", run, "--out", tmp_path / "none", code=3).stderr
    )


def test_names_that_later_labels_need_are_left_free(warm: Cli, folder: Path, tmp_path: Path) -> None:
    image = next(path for path in folder.rglob("*.jpg"))
    (tmp_path / "t.csv").write_text(f"image,label,Score\n{image},cat,3\n{image},dog,4\n")
    warm("run", tmp_path / "t.csv", *MODEL, "--embeddings", "--out", tmp_path / "run")
    assert rows(tmp_path / "run").column_names[-2:] == ["input_label", "input_Score"]
    warm("rescore", tmp_path / "run", "--labels", "cat,dog", "--out", tmp_path / "later")
    assert rows(tmp_path / "later")["input_label"].to_pylist() == ["cat", "dog"]


def test_a_run_that_would_hold_nothing_is_refused(warm: Cli, folder: Path, tmp_path: Path) -> None:
    said = warm("run", folder, *MODEL, "--out", tmp_path / "out", code=3).stderr
    assert "a run with --caption-column, --head or --embeddings needs none" in said
    template = ("--template", "a {}", "--embeddings", "--out", tmp_path / "out")
    assert "--template is for labels" in warm("run", folder, *MODEL, *template, code=3).stderr
    assert not (tmp_path / "out").exists()


def test_from_python(folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clipbatch.Classifier(model="clipbatch-demo", embeddings=True, batch_size=16) as classifier:
        image = next(path for path in sorted(folder.rglob("*.jpg")))
        table = classifier.classify([image]).table
    assert table.column_names == [*FACTS, "embedding"]
