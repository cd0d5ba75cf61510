"""What is written: the schema of the README, read by the tools that people use."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import DEMO, Cli, rows
from corpus import make_folder

FILES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, FILES, seed=4, bad_fraction=0.2)
    return folder


@pytest.fixture(scope="module")
def out(cli: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "run"
    cli("run", folder, *DEMO, "--shard-size", 32, "--embeddings", "--out", out)
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


def test_top_k_replaces_the_scores_by_the_best_labels(cli: Cli, folder: Path, out: Path, tmp_path: Path) -> None:
    cli("run", folder, *DEMO, "--shard-size", 32, "--top-k", 3, "--out", tmp_path / "top")
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


@pytest.mark.parametrize(
    ("kind", "check"), [("cosine", lambda s: (np.abs(s) <= 1).all()), ("sigmoid", lambda s: s.sum(axis=1).max() > 2)]
)
def test_other_kinds_of_score_on_request(cli: Cli, folder: Path, tmp_path: Path, kind: str, check) -> None:  # type: ignore[no-untyped-def]
    cli("run", folder, *DEMO, "--score", kind, "--limit", 20, "--out", tmp_path / "out")
    assert check(np.array([scores for scores in rows(tmp_path / "out")["scores"].to_pylist() if scores]))


def test_the_report_counts_every_row_and_names_the_bottleneck(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    statuses = rows(out)["status"].to_pylist()
    assert report["status"] == {status: statuses.count(status) for status in set(statuses)}
    assert report["rows"] == report["rows_done"] == FILES
    assert report["this_run"]["bottleneck"] in ("read", "decode", "encode", "score", "write")
    assert report["this_run"]["peak_memory_mib"] > 0
    assert {"torch", "pyarrow", "python", "clipbatch"} <= report["versions"].keys()


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "swapped"])
def test_verify_finds_damage_and_running_again_mends_it(cli: Cli, folder: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    cli("run", folder, *DEMO, "--shard-size", 32, "--out", out)
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
    error = cli("verify", out, code=5).stderr
    assert str(second) in error
    assert str(first) not in error
    cli("run", "--out", out, "--repair")
    assert second.read_bytes() == whole
    cli("verify", out)
