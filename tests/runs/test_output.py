"""The schema of docs/reference/output.md, read by the tools that people use."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.rundir.part_file import PartFile
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder

FILES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, FILES, seed=4, bad_fraction=0.2)
    return folder


@pytest.fixture(scope="module")
def out(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "run"
    warm("run", folder, *DEMO, "--shard-size", 32, "--embeddings", "--out", out)
    return out


def test_the_schema_is_the_documented_one(out: Path) -> None:
    words = pa.dictionary(pa.int32(), pa.string())
    documented = {
        "row_id": pa.int64(),
        "uri": pa.string(),
        "status": words,
        "error": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "decoder": words,
        "label": words,
        "score": pa.float32(),
        "margin": pa.float32(),
        "scores": pa.list_(pa.float32(), 10),
        "embedding": pa.list_(pa.float16(), 96),
    }
    schema = pq.read_schema(out / "parts" / "part-00000.parquet")
    assert dict(zip(schema.names, schema.types, strict=True)) == documented


def test_the_footer_says_what_the_part_is(out: Path) -> None:
    for shard, part in enumerate(sorted((out / "parts").iterdir())):
        file = pq.ParquetFile(part)
        footer = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        assert footer["clipbatch.shard"] == str(shard)
        assert footer["clipbatch.model"] == "clipbatch-demo"
        assert json.loads(footer["clipbatch.labels"])[:2] == ["airplane", "automobile"]
        assert sum(json.loads(footer["clipbatch.counts"]).values()) == file.metadata.num_rows
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_scores_are_probabilities_and_label_and_score_their_best(out: Path) -> None:
    table = rows(out).filter(pa.compute.equal(rows(out)["status"].cast("string"), "ok"))
    scores = np.array(table["scores"].to_pylist())
    labels = np.array(json.loads(table.schema.metadata[b"clipbatch.labels"]))
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert labels[scores.argmax(axis=1)].tolist() == table["label"].to_pylist()
    np.testing.assert_array_equal(scores.max(axis=1).astype(np.float32), table["score"].to_numpy())
    np.testing.assert_allclose(
        np.linalg.norm(np.array(table["embedding"].to_pylist(), np.float32), axis=1), 1, atol=2e-3
    )


def test_duckdb_pandas_and_polars_read_it(out: Path) -> None:
    counts = duckdb.sql(f"select label, count(*) from '{out}/parts/*.parquet' group by 1").fetchall()
    assert sum(count for _, count in counts) == FILES
    by_pandas = pd.read_parquet(out / "parts")
    assert by_pandas["label"].value_counts().to_dict() == {label: count for label, count in counts if label}
    by_polars = pl.scan_parquet(out / "parts" / "*.parquet").filter(pl.col("status") == "ok").collect()
    assert by_polars["scores"].arr.to_list().list.len().unique().to_list() == [10]
    assert len(by_polars) == (by_pandas["status"] == "ok").sum()


def test_top_k_replaces_the_scores_by_the_best_labels(warm: Cli, folder: Path, out: Path, tmp_path: Path) -> None:
    warm("run", folder, *DEMO, "--shard-size", 32, "--embeddings", "--top-k", 3, "--out", tmp_path / "top")
    table = rows(tmp_path / "top")
    assert "scores" not in table.column_names
    labels = json.loads(table.schema.metadata[b"clipbatch.labels"])
    for row, whole in zip(table.to_pylist(), rows(out).to_pylist(), strict=True):
        if whole["scores"] is None:
            assert row["top"] is None
            continue
        best = sorted(zip(whole["scores"], labels, strict=True), key=lambda pair: -pair[0])[:3]
        assert [entry["label"] for entry in row["top"]] == [label for _, label in best]
        assert [entry["score"] for entry in row["top"]] == [score for score, _ in best]


GROUPS = """
[groups.thing]
labels = ["airplane", "bird", "cat", "dog", "ship"]
threshold = 0.7
[groups.alive]
labels = {yes = ["a photo of a bird.", "a photo of a dog."], "no!" = ["a photo of a ship."]}
"""


@pytest.fixture(scope="module")
def grouped(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with two label groups, in each layout."""
    made = tmp_path_factory.mktemp("groups")
    (made / "groups.toml").write_text(GROUPS)
    command = ("run", folder, "--labels", made / "groups.toml", "--model", "clipbatch-demo", "--shard-size", 64)
    for layout in ("list", "wide", "top-k"):
        warm(*command, "--layout", layout, "--out", made / layout)
        warm("verify", made / layout)
    return {layout: made / layout for layout in ("list", "wide", "top-k")}


def test_groups_are_scored_separately_in_one_pass(grouped: dict[str, Path]) -> None:
    table = rows(grouped["list"])
    for row in table.to_pylist():
        for group, labels in (("thing", ["airplane", "bird", "cat", "dog", "ship"]), ("alive", ["yes", "no!"])):
            scores = row[f"{group}_scores"]
            if row["status"] != "ok":
                assert scores is row[f"{group}_label"] is row[f"{group}_score"] is None
                continue
            assert sum(scores) == pytest.approx(1, abs=1e-5)
            assert row[f"{group}_score"] == max(scores)
            sure = group == "alive" or max(scores) >= 0.7
            assert row[f"{group}_label"] == (labels[int(np.argmax(scores))] if sure else None)
    assert None in [row["thing_label"] for row in table.to_pylist() if row["status"] == "ok"]


def test_a_groups_scores_are_those_of_a_run_of_its_own(
    warm: Cli, folder: Path, grouped: dict[str, Path], tmp_path: Path
) -> None:
    alone = ("--labels", "airplane,bird,cat,dog,ship", "--model", "clipbatch-demo", "--shard-size", 64)
    warm("run", folder, *alone, "--out", tmp_path / "alone")
    theirs = [row or [] for row in rows(tmp_path / "alone")["scores"].to_pylist()]
    for ours, other in zip(rows(grouped["list"])["thing_scores"].to_pylist(), theirs, strict=True):
        assert (ours or []) == pytest.approx(other, abs=1e-6)


def test_wide_and_top_k_have_the_scores_of_the_list(grouped: dict[str, Path]) -> None:
    listed, wide, top = (rows(grouped[layout]).to_pylist() for layout in ("list", "wide", "top-k"))
    columns = json.loads(rows(grouped["wide"]).schema.metadata[b"clipbatch.columns"])
    assert columns["alive"] == {"yes": "alive_score_yes", "no!": "alive_score_no_"}
    for a, b, c in zip(listed, wide, top, strict=True):
        for group in ("thing", "alive"):
            assert a[f"{group}_label"] == b[f"{group}_label"] == c[f"{group}_label"]
            scores = a[f"{group}_scores"] or [None] * len(columns[group])
            assert [b[column] for column in columns[group].values()] == scores
            entries = {entry["label"]: entry["score"] for entry in c[f"{group}_top"] or ()}
            assert entries.items() <= dict(zip(columns[group], scores, strict=True)).items()


def test_a_carried_column_gives_way_to_a_groups_and_to_a_wide_one(warm: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(GROUPS)
    names = sorted(str(path) for path in folder.rglob("*.jpg"))[:4]
    lines = [json.dumps({"uri": name, "Alive_Label": "x", "alive_score_no_": 1, "score": 2}) for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    command = ("run", tmp_path / "m.jsonl", "--labels", tmp_path / "g.toml", "--model", "clipbatch-demo")
    warm(*command, "--layout", "wide", "--out", tmp_path / "out")
    assert rows(tmp_path / "out").column_names[-3:] == ["input_Alive_Label", "input_alive_score_no_", "score"]
    assert rows(tmp_path / "out")["score"].to_pylist() == [2] * 4


def test_verify_finds_a_label_that_its_score_does_not_allow(
    warm: Cli, grouped: dict[str, Path], tmp_path: Path
) -> None:
    """As a part of another clipbatch would have it: sealed and of this run, and yet wrong."""
    out = tmp_path / "out"
    shutil.copytree(grouped["list"], out)
    part = out / "parts" / "part-00000.parquet"
    table = pq.read_table(part)
    labels = table["alive_label"].combine_chunks().take(pa.array([None] * table.num_rows, pa.int32()))
    counts = pq.read_metadata(part).metadata[b"clipbatch.counts"].decode()
    for name, columns in (("alive_label", labels), ("thing_scores", table["thing_scores"].take(labels.indices))):
        wrong = table.set_column(table.column_names.index(name), table.field(name), columns)
        with PartFile(part, wrong.schema, "zstd") as file:
            file.write(wrong)
            file.close({"clipbatch.counts": counts})
        assert f"its {name} does not match its status" in warm("verify", out, code=5).stderr


def test_cosine_scores_on_request(warm: Cli, folder: Path, tmp_path: Path) -> None:
    warm("run", folder, *DEMO, "--score", "cosine", "--limit", 20, "--out", tmp_path / "out")
    scores = np.array([scores for scores in rows(tmp_path / "out")["scores"].to_pylist() if scores])
    assert (np.abs(scores) <= 1).all()
    assert scores.min() < 0


def test_the_report_counts_every_row_and_names_the_bottleneck(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    statuses = rows(out)["status"].to_pylist()
    assert report["status"] == {status: statuses.count(status) for status in set(statuses)}
    assert report["rows"] == report["rows_done"] == FILES
    assert report["this_run"]["bottleneck"] in ("read", "decode", "encode", "score", "write")
    ceilings = {"cores", "lock", "encoder", "disk"}
    assert report["this_run"]["ceiling"] in ceilings
    assert {worker["ceiling"] for worker in report["this_run"]["workers"]} <= ceilings
    assert all(0 < worker["cpu_load"] <= 1.1 for worker in report["this_run"]["workers"])
    assert report["this_run"]["peak_memory_mib"] > 0
    assert {"torch", "pyarrow", "python", "clipbatch"} <= report["versions"].keys()


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "swapped"])
def test_verify_finds_damage_and_running_again_repairs_it(warm: Cli, folder: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    warm("run", folder, *DEMO, "--shard-size", 32, "--out", out)
    first, second = sorted((out / "parts").iterdir())[:2]
    whole = second.read_bytes()
    if damage == "missing":
        second.unlink()
    elif damage == "swapped":
        second.write_bytes(first.read_bytes())
    else:
        data = bytearray(whole[: len(whole) // 2] if damage == "cut" else whole)
        data[len(data) // 2] ^= 64
        second.write_bytes(data)
    error = warm("verify", out, code=5).stderr
    assert str(second) in error
    assert str(first) not in error
    warm("run", "--out", out, "--repair")
    assert second.read_bytes() == whole
    warm("verify", out)
