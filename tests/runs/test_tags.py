"""Tags, thresholds and margins: in every layout, against numpy and open_clip, scored again, served and read."""

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import open_clip
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import clipbatch
from clipbatch.config import models
from clipbatch.rundir.part_file import PartFile
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder

FILES, SHARD = 96, 32
SIDES = {"flies": ("a photo of a bird.", "a photo of a truck."), "dog": ("a photo of a dog.", "a photo of a cat.")}
MANY = ("airplane", "bird", "cat", "dog", "ship")
CUTOFFS = {"dog": 0.05, "ship": 0.9}
GROUPS = f"""
[groups.tag]
tags = {{flies = {list(SIDES["flies"])}, dog = {list(SIDES["dog"])}}}
thresholds = {{dog = 0.3}}
[groups.many]
labels = {list(MANY)}
multiple = true
threshold = 0.2
thresholds = {{dog = 0.05, ship = 0.9}}
[groups.one]
labels = ["cat", "dog"]
thresholds = {{dog = 0.99}}
"""
LAYOUTS: dict[str, tuple[str, ...]] = {
    "list": ("--embeddings",),
    "wide": ("--layout", "wide"),
    "top": ("--top-k", "2"),
    "half": ("--scores-dtype", "float16"),
}
Run = dict[str, Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    make_folder(folder / "in", FILES, seed=17, bad_fraction=0.1)
    (folder / "tags.toml").write_text(GROUPS)
    return folder


@pytest.fixture(scope="module")
def runs(warm: Cli, folder: Path) -> Run:
    """The same images and tags in each layout; the first one with embeddings."""
    command = ("run", folder / "in", "--labels", folder / "tags.toml", "--model", "clipbatch-demo")
    for layout, options in LAYOUTS.items():
        if layout == "list":
            warm(*command, "--shard-size", SHARD, *options, "--out", folder / layout)
        else:
            warm("rescore", folder / "list", *options, "--out", folder / layout)
    return {layout: folder / layout for layout in LAYOUTS}


def _reference(image_BD: Any) -> dict[str, Any]:
    """Scores by open_clip's own model and numpy in double precision, of saved embeddings."""
    open_clip.add_model_config(models.config_file(models.DEMO))
    weights = models.weights_file(models.default_weights(models.DEMO))
    model = open_clip.create_model(models.DEMO, pretrained=weights).eval()
    tokenizer = open_clip.get_tokenizer(models.DEMO)
    with torch.inference_mode():
        scale = float(model.logit_scale.exp())

        def logits(texts: list[str]) -> Any:
            text = model.encode_text(tokenizer(texts), normalize=True).double().numpy()
            return scale * image_BD.astype(np.float64) @ text.T

        def softmax(values: Any) -> Any:
            powers = np.exp(values - values.max(axis=-1, keepdims=True))
            return powers / powers.sum(axis=-1, keepdims=True)

        return {
            "tag": np.stack([softmax(logits(list(pair)))[:, 0] for pair in SIDES.values()], axis=1),
            "many": softmax(logits([f"a photo of a {name}." for name in MANY])),
        }


def test_scores_labels_and_margins_are_what_open_clip_and_numpy_make(runs: Run) -> None:
    table = rows(runs["list"])
    good = table.filter(pc.equal(table["status"].cast("string"), "ok"))
    expected = _reference(np.array(good["embedding"].to_pylist(), np.float16))
    for group, names in (("tag", tuple(SIDES)), ("many", MANY)):
        cutoffs = {"flies": 0.5, "dog": 0.3} if group == "tag" else dict.fromkeys(MANY, 0.2) | CUTOFFS
        scores = np.array(good[f"{group}_scores"].to_pylist())
        np.testing.assert_allclose(scores, expected[group], atol=1e-5)
        several = 0
        for row in good.to_pylist():
            pairs = sorted(zip(row[f"{group}_scores"], names, strict=True), key=lambda pair: -pair[0])
            chosen = [name for score, name in pairs if score >= np.float32(cutoffs[name])]
            assert row[f"{group}_labels"] == chosen
            assert row[f"{group}_label"] == (chosen[0] if chosen else None)
            assert row[f"{group}_score"] == ({n: s for s, n in pairs}[chosen[0]] if chosen else pairs[0][0])
            assert row[f"{group}_margin"] == np.float32(pairs[0][0]) - np.float32(pairs[1][0])
            several += len(chosen) > 1
        assert several
        assert [] in good[f"{group}_labels"].to_pylist()
    for row in good.to_pylist():
        cat, dog = row["one_scores"]
        assert row["one_label"] == ("cat" if cat >= dog else "dog" if dog >= np.float32(0.99) else None)
    assert None in good["one_label"].to_pylist()
    assert "one_labels" not in table.column_names
    bad = table.filter(pc.not_equal(table["status"].cast("string"), "ok"))
    assert bad.num_rows
    for name in ("tag_labels", "tag_margin", "many_labels", "one_margin"):
        assert bad[name].null_count == bad.num_rows
    assert table.schema.field("tag_labels").type == pa.list_(pa.string())
    assert table.schema.field("tag_margin").type == pa.float32()


def test_every_layout_has_the_same_labels_and_margins_and_is_whole(warm: Cli, runs: Run) -> None:
    first = rows(runs["list"])
    for layout, out in runs.items():
        warm("verify", out)
        for group in ("tag", "many", "one"):
            for name in ("label", "score", "margin", *(() if group == "one" else ("labels",))):
                assert rows(out)[f"{group}_{name}"].to_pylist() == first[f"{group}_{name}"].to_pylist(), (layout, name)


def test_scoring_the_saved_embeddings_again_gives_the_very_same_columns(warm: Cli, runs: Run, tmp_path: Path) -> None:
    warm("rescore", runs["list"], "--embeddings", "--out", tmp_path / "again")
    assert rows(tmp_path / "again").equals(rows(runs["list"]))


def test_everybody_who_reads_parquet_finds_a_tag(runs: Run) -> None:
    expected = sum("dog" in labels for labels in rows(runs["list"])["tag_labels"].to_pylist() if labels)
    assert expected
    parts = runs["list"] / "parts"
    found = duckdb.sql(f"select count(*) from '{parts}/*.parquet' where list_contains(tag_labels, 'dog')").fetchall()
    assert found == [(expected,)]
    frame = pd.read_parquet(parts)
    assert frame["tag_labels"].map(lambda labels: labels is not None and "dog" in labels).sum() == expected
    polars = pl.scan_parquet(parts / "*.parquet").filter(pl.col("tag_labels").list.contains("dog")).collect()
    assert len(polars) == expected


def test_verify_finds_labels_and_margins_that_the_scores_do_not_allow(warm: Cli, runs: Run, tmp_path: Path) -> None:
    shutil.copytree(runs["list"], tmp_path / "out")
    part = tmp_path / "out" / "parts" / "part-00000.parquet"
    table, counts = pq.read_table(part), pq.read_metadata(part).metadata[b"clipbatch.counts"].decode()
    lists = [labels and labels[:1] for labels in table["many_labels"].to_pylist()]
    wrong = {
        "many_labels": pa.array(lists, pa.list_(pa.string())),
        "tag_margin": pc.multiply(table["tag_margin"], pa.scalar(0.5, pa.float32())),
    }
    for name, column in wrong.items():
        changed = table.set_column(table.column_names.index(name), table.field(name), column)
        with PartFile(part, changed.schema, "zstd") as file:
            file.write(changed)
            file.close({"clipbatch.counts": counts})
        assert f"its {name} does not match its" in warm("verify", tmp_path / "out", code=5).stderr


def test_it_is_compacted_reported_and_its_shares_say_of_what(warm: Cli, runs: Run, tmp_path: Path) -> None:
    warm("compact", runs["list"], "--out", tmp_path / "files")
    assert pq.read_table(tmp_path / "files" / "parts").to_pylist() == rows(runs["list"]).to_pylist()
    warm("report", runs["list"], "--examples", 1, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    scored = sum(status == "ok" for status in rows(runs["list"])["status"].to_pylist())
    assert f"Share of the {scored} scored images" in page
    assert "An image may have several labels" in page
    assert "none of their scores reaches" in page


def test_the_classifier_gives_the_columns_of_the_run(runs: Run, folder: Path) -> None:
    names = sorted(path for path in (folder / "in").rglob("*.jpg"))[:8]
    with clipbatch.Classifier(labels=folder / "tags.toml", model="clipbatch-demo", root=str(folder / "in")) as model:
        table = model.classify([str(name) for name in names]).table
    own = [name for name in rows(runs["list"]).column_names if name != "embedding"]
    assert table.column_names == own
    for row in table.to_pylist():
        if row["status"] == "ok":
            assert set(row["tag_labels"]) == {
                name for name, score in zip(SIDES, row["tag_scores"], strict=True) if score >= (0.5, 0.3)[name == "dog"]
            }


def test_columns_of_the_input_with_these_names_give_way(warm: Cli, folder: Path, tmp_path: Path) -> None:
    names = sorted(str(path) for path in (folder / "in").rglob("*.jpg"))[:4]
    lines = [json.dumps({"uri": name, "margin": 1, "labels": "x"}) for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    (tmp_path / "t.toml").write_text('tags = {dog = ["a dog", "a cat"]}')
    command = ("run", tmp_path / "m.jsonl", "--model", "clipbatch-demo", "--labels")
    warm(*command, tmp_path / "t.toml", "--out", tmp_path / "out")
    assert rows(tmp_path / "out").column_names[-2:] == ["input_margin", "input_labels"]
    assert rows(tmp_path / "out")["margin"].null_count == 4  # there is one tag, so no second best
    warm(*command, "cat,dog", "--out", tmp_path / "plain")
    assert rows(tmp_path / "plain").column_names[-2:] == ["input_margin", "labels"]


def test_sigmoid_with_a_model_of_softmax_is_refused_when_planned_and_not_later(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    command = ("run", folder / "in", *DEMO, "--score", "sigmoid", "--out", tmp_path / "out")
    assert "it has no logit bias" in warm(*command, code=3).stderr
    assert not (tmp_path / "out").exists()
    old = shutil.copytree(Path(__file__).parents[1] / "fixtures" / "run-e041681", tmp_path / "old")
    plan = json.loads((old / "run" / "run.json").read_text())
    plan["identity"]["score"] = plan["settings"]["score"] = "sigmoid"
    (old / "run" / "run.json").write_text(json.dumps(plan))
    for name in ("model.json", "text.npy"):
        (old / "run" / name).unlink()
    for part in (old / "run" / "parts").iterdir():
        part.unlink()
    warm("run", "--out", "run", cwd=old)
    assert "thing_margin" not in rows(old / "run").column_names


def test_scores_at_chance_are_said_in_the_summary_and_on_the_page(warm: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("run", folder / "in", "--model", "clipbatch-demo", "--labels")
    assert "warning: scores are at chance level" in warm(*command, "giraffe,zebra", "--out", tmp_path / "a").stdout
    warm("report", tmp_path / "a", "--examples", 0)
    assert "are at chance level" in (tmp_path / "a" / "report.html").read_text()
    assert "chance level" not in warm(*command, "cat,dog,ship", "--out", tmp_path / "b").stdout


def test_what_a_newcomer_gets_wrong_is_said(warm: Cli, folder: Path, tmp_path: Path) -> None:
    long = "a very long prompt about " + "a tall giraffe in front of many green trees and " * 12 + "a lake"
    (tmp_path / "l.txt").write_text(f"Zebra\nzebra\n{long}\n")
    made = warm(
        "run", folder / "in", "--labels", tmp_path / "l.txt", "--model", "clipbatch-demo", "--out", tmp_path / "o"
    )
    assert "'Zebra' and 'zebra' differ only in case or spaces" in made.stderr
    assert "does not know 'Zebra', 'zebra'" in made.stderr
    assert "1 prompt is longer than the 77 tokens that clipbatch-demo reads" in made.stderr
    said = warm("labels", tmp_path / "l.txt")
    assert "1 of 3 prompts are cut off" in said.stderr
    shown = warm("labels", tmp_path / "l.txt", "--model", "clipbatch-demo").stdout
    assert not any("a lake" in line for line in shown.splitlines() if line.startswith("    "))
    assert "a photo of a zebra ." in shown
