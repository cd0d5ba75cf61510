"""Parts read by DuckDB, Polars, pandas, pyarrow, Spark and Hugging Face datasets, in every layout."""

import datetime
import decimal
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from clipbatch.rundir.part_file import PartFile
from tests.conftest import DEMO, Cli, needs, rows
from tests.support.corpus import make_folder, photo

FILES, SHARD = 128, 16
GROUPS = (
    '[groups.thing]\nlabels = ["cat", "Red Fox", "ship"]\n[groups.alive]\nlabels = ["yes", "no"]\nthreshold = 0.7\n'
)
TAGS = 'labels = ["cat", "dog", "ship", "frog"]\nmultiple = true\nthreshold = 0.1\n'
LAYOUTS = ("list", "wide", "top", "half", "tags")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def runs(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in every layout: list with embeddings, wide in two groups, top-k, list in float16."""
    folder = tmp_path_factory.mktemp("readers")
    make_folder(folder / "in", FILES - SHARD, seed=41, bad_fraction=0)
    for number in range(SHARD):
        (folder / "in" / f"z{number:02d}.jpg").touch()  # the last in the listing: a part of bad rows alone
    (folder / "g.toml").write_text(GROUPS)
    warm("run", folder / "in", *DEMO, "--shard-size", SHARD, "--embeddings", "--out", folder / "list")
    warm("rescore", folder / "list", "--labels", folder / "g.toml", "--layout", "wide", "--out", folder / "wide")
    warm("rescore", folder / "list", "--top-k", 3, "--out", folder / "top")
    warm("rescore", folder / "list", "--scores-dtype", "float16", "--out", folder / "half")
    (folder / "t.toml").write_text(TAGS)
    warm("rescore", folder / "list", "--labels", folder / "t.toml", "--out", folder / "tags")
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """One Spark for all tests: starting it takes longer than they do."""
    needs("java")
    from pyspark.sql import SparkSession

    address = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    small = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "1", "spark.log.level": "ERROR"}
    builder = SparkSession.builder.master("local[1]")
    for key, value in (address | small).items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(params=["duckdb", "polars", "pandas", "pyarrow", "datasets", "spark"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path, list[str]], list[Row]]:
    """A reader: folder of parts and columns -> rows."""

    def by_duckdb(parts: Path, columns: list[str]) -> list[Row]:
        found = duckdb.sql(f"select {', '.join(columns)} from '{parts}/*.parquet' order by row_id")
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]

    def by_polars(parts: Path, columns: list[str]) -> list[Row]:
        return pl.scan_parquet(parts).select(columns).sort("row_id").collect().to_dicts()

    def by_pandas(parts: Path, columns: list[str]) -> list[Row]:
        frame = pd.read_parquet(parts, columns=columns).sort_values("row_id")
        found: list[Row] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return found

    def by_pyarrow(parts: Path, columns: list[str]) -> list[Row]:
        found: list[Row] = ds.dataset(parts).to_table(columns=columns).sort_by("row_id").to_pylist()
        return found

    def by_datasets(parts: Path, columns: list[str]) -> list[Row]:
        files = sorted(str(path) for path in parts.iterdir())
        found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
        return list(found.select_columns(columns))

    def by_spark(parts: Path, columns: list[str]) -> list[Row]:
        frame = request.getfixturevalue("spark").read.parquet(str(parts)).select(columns).orderBy("row_id")
        return [row.asDict(recursive=True) for row in frame.collect()]

    found: Callable[[Path, list[str]], list[Row]] = locals()[f"by_{request.param}"]
    found.__dict__["name"] = request.param
    return found


def _same(found: Any, expected: Any) -> bool:
    """Whether a cell is the expected one, whatever sequence and number types a reader uses."""
    if expected is None or found is None:
        return found is None and expected is None
    if isinstance(expected, list):
        return len(found) == len(expected) and all(_same(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        return expected.keys() == dict(found).keys() and all(_same(found[name], expected[name]) for name in expected)
    return bool(found == expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_reader_finds_every_cell(runs: dict[str, Path], read: Any, layout: str) -> None:
    table = rows(runs[layout])
    half = [field.name for field in table.schema if "halffloat" in str(field.type)]
    columns = [name for name in table.column_names if not (read.name == "spark" and name in half)]
    assert half == {"list": ["embedding"], "half": ["scores"]}.get(layout, [])
    found = read(runs[layout] / "parts", columns)
    assert len(found) == FILES
    for row, expected in zip(found, table.select(columns).to_pylist(), strict=True):
        wrong = {name: row[name] for name in columns if not _same(row[name], expected[name])}
        assert wrong == {}


def test_spark_reads_all_columns_except_float16_without_options(runs: dict[str, Path], spark: Any) -> None:
    names = {layout: spark.read.parquet(str(runs[layout] / "parts")).columns for layout in LAYOUTS}
    for layout, dropped in (("list", {"embedding"}), ("half", {"scores"}), ("wide", set()), ("top", set())):
        assert set(rows(runs[layout]).column_names) - set(names[layout]) == dropped


def test_spark_reads_carried_columns_of_every_type_beside_float16(tmp_path: Path, spark: Any) -> None:
    """What it has no type for is left out with float16; everything else has its value."""
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
    columns: dict[str, tuple[pa.DataType, Any]] = {
        "flag": (pa.bool_(), True),
        "tiny": (pa.int8(), -7),
        "large": (pa.int64(), 2**40),
        "whole": (pa.uint32(), 2**32 - 1),
        "double": (pa.float64(), 0.1),
        "text": (pa.large_string(), "café"),
        "word": (pa.dictionary(pa.int32(), pa.string()), "red"),
        "bytes": (pa.binary(), b"\xff"),
        "day": (pa.date32(), datetime.date(2026, 1, 2)),
        "price": (pa.decimal128(9, 2), decimal.Decimal("12.50")),
        "at": (pa.timestamp("us", "UTC"), when),
        "local": (pa.timestamp("ms"), datetime.datetime(2026, 1, 2, 3, 4, 5)),
        "tags": (pa.list_(pa.string()), ["a", "b"]),
        "both": (pa.struct([("n", pa.int32()), ("half", pa.float16())]), {"n": 1, "half": 0.5}),
        "half": (pa.list_(pa.float16(), 2), [0.5, 0.25]),
        "none": (pa.null(), None),
    }
    table = pa.table({name: pa.array([value, None], kind) for name, (kind, value) in columns.items()})
    (tmp_path / "parts").mkdir()
    with PartFile(tmp_path / "parts" / "a.parquet", table.schema, "zstd") as file:
        file.write(table)
        file.close({})
    frame = spark.read.parquet(str(tmp_path / "parts"))
    assert set(columns) - set(frame.columns) == {"half", "none"}
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    row, empty = (found.asDict(recursive=True) for found in frame.collect())
    expected = {name: value for name, (_, value) in columns.items() if name in row} | {"both": {"n": 1}}
    assert row.pop("at").astimezone(datetime.UTC) == expected.pop("at")
    assert row == expected
    assert set(empty.values()) == {None}


def test_rows_join_to_the_manifest_by_row_id_and_by_uri(runs: dict[str, Path], spark: Any) -> None:
    parts, manifest = runs["list"] / "parts", runs["list"] / "manifest"
    uris = dict(enumerate(rows(runs["list"])["uri"].to_pylist()))
    for key, other in (("row_id", "uri"), ("uri", "row_id")):
        tables = f"'{parts}/*.parquet' p join '{manifest}/*.parquet' m using ({key})"
        by_duckdb = duckdb.sql(f"select m.row_id, p.uri from {tables} where m.{other} = p.{other}").fetchall()
        by_polars = pl.scan_parquet(parts).join(pl.scan_parquet(manifest), on=[key, other]).collect()
        by_pandas = pd.read_parquet(parts).merge(pd.read_parquet(manifest), on=[key, other])
        by_spark = spark.read.parquet(str(parts)).join(spark.read.parquet(str(manifest)), [key, other])
        assert len(by_duckdb) == FILES
        assert dict(by_duckdb) == uris
        assert dict(zip(by_polars["row_id"], by_polars["uri"], strict=True)) == uris
        assert dict(zip(by_pandas["row_id"], by_pandas["uri"], strict=True)) == uris
        assert {row["row_id"]: row["uri"] for row in by_spark.select("row_id", "uri").collect()} == uris


def test_filters_give_what_a_full_scan_gives(runs: dict[str, Path], spark: Any) -> None:
    parts, table = runs["list"] / "parts", rows(runs["list"])
    statuses, labels = Counter(table["status"].to_pylist()), Counter(table["label"].to_pylist())
    assert statuses["empty"] == SHARD
    for column, counts in (("status", statuses), ("label", labels)):
        for value, count in counts.items():
            if value is None:
                continue
            where = f"{column} = '{value}'"
            assert duckdb.sql(f"select count(*) from '{parts}/*.parquet' where {where}").fetchall() == [(count,)]
            assert pl.scan_parquet(parts).filter(pl.col(column) == value).select(pl.len()).collect().item() == count
            assert len(pd.read_parquet(parts, filters=[(column, "==", value)])) == count
            assert ds.dataset(parts).count_rows(ds.field(column) == value) == count
            assert spark.read.parquet(str(parts)).where(where).count() == count


def test_duckdb_skips_row_groups_that_cannot_hold_the_status_or_label(runs: dict[str, Path]) -> None:
    """By the footer's least and greatest value: of all parts only the last has a bad row, and it has no label."""
    parts = runs["list"] / "parts"
    held = [pq.read_table(path) for path in parts.iterdir()]
    for column, value in (("status", "empty"), ("status", "ok"), ("label", "airplane"), ("label", "truck")):
        words = [set(table[column].drop_null().to_pylist()) for table in held]
        may_hold = sum(bool(found) and min(found) <= value <= max(found) for found in words)
        query = f"explain analyze select count(*) from '{parts}/*.parquet' where {column} = '{value}'"
        scanned = re.search(r"Row Groups Scanned: (\d+) / (\d+)", duckdb.sql(query).fetchall()[0][1])
        assert scanned
        assert int(scanned[2]) == len(held)
        assert may_hold <= int(scanned[1]) < len(held), (column, value)
    assert [set(table["status"].to_pylist()) == {"empty"} for table in held].count(True) == 1
    least_and_greatest = {
        (group.column(2).statistics.min, group.column(2).statistics.max)
        for group in (pq.read_metadata(path).row_group(0) for path in parts.iterdir())
    }
    assert least_and_greatest == {("ok", "ok"), ("empty", "empty")}


def test_every_reader_of_footers_reads_ours(runs: dict[str, Path]) -> None:
    part = runs["wide"] / "parts" / "part-00000.parquet"
    by_pyarrow = {key.decode(): value.decode() for key, value in pq.read_metadata(part).metadata.items()}
    by_duckdb = {
        bytes(key).decode(): bytes(value).decode()
        for key, value in duckdb.sql(f"select key, value from parquet_kv_metadata('{part}')").fetchall()
    }
    by_polars = pl.read_parquet_metadata(part)
    for found in (by_pyarrow, by_duckdb, by_polars):
        assert json.loads(found["clipbatch.labels"]) == {"thing": ["cat", "Red Fox", "ship"], "alive": ["yes", "no"]}
        assert json.loads(found["clipbatch.columns"])["thing"]["Red Fox"] == "thing_score_red_fox"
        assert json.loads(found["clipbatch.threshold"]) == {"thing": None, "alive": 0.7}
        assert found["clipbatch.model"] == "clipbatch-demo"


def _statements(heading: str) -> list[str]:
    """The queries of a section of docs/reference/output.md, without their comments."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "output.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n#")[0]
    blocks = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return [text.strip() for block in blocks for text in re.sub(r"--[^\n]*", "", block).split(";") if text.strip()]


def test_the_five_queries_of_the_documentation_run_unchanged(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(runs["list"], tmp_path / "scores")
    table = rows(runs["list"])
    monkeypatch.chdir(tmp_path)
    statements = _statements("The five queries that people run first")
    assert len(statements) == 5
    there, wrong, doubtful, best, placed = (duckdb.sql(text).fetchall() for text in statements)
    labels = Counter(table["label"].drop_null().to_pylist())
    assert {label: count for label, count, _ in there} == labels
    assert [(status, count) for status, _, count in wrong] == [("empty", SHARD)]
    scores = dict(zip(table["uri"].to_pylist(), table["score"].to_pylist(), strict=True))
    assert [uri for uri, *_ in doubtful] == sorted(
        (u for u in scores if (scores[u] or 1) < 0.4), key=lambda u: scores[u]
    )
    dogs = [(row["scores"][5], row["uri"]) for row in table.to_pylist() if row["scores"]]
    assert [uri for uri, _ in best] == [uri for _, uri in sorted(dogs, reverse=True)[:20]]
    assert len(placed) == FILES
    assert all(Path(root, uri).exists() for uri, root, _ in placed)


def test_a_table_of_ones_own_joins_the_parts_without_doubling_rows(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(runs["list"], tmp_path / "folder-scores")
    uris = rows(runs["list"])["uri"].to_pylist()
    named = [*uris, uris[0], uris[0]]  # a name that occurs three times
    pd.DataFrame({"image": named, "price": range(len(named))}).to_csv(tmp_path / "products.csv", index=False)
    monkeypatch.chdir(tmp_path)
    (statement,) = _statements("With a table of your own")
    joined = duckdb.sql(statement).fetchall()
    assert sorted(row[:2] for row in joined) == sorted((uri, price) for price, uri in enumerate(uris))


def test_embeddings_are_read_as_a_matrix(runs: dict[str, Path]) -> None:
    """As docs/reference/output.md does it: for a nearest-neighbour search of one's own."""
    table = ds.dataset(runs["list"] / "parts").to_table(filter=ds.field("status") == "ok", columns=["embedding"])
    matrix = np.vstack(table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1))
    assert matrix.shape == (FILES - SHARD, 96)
    assert matrix.dtype == np.float16
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)
    np.testing.assert_allclose(np.linalg.norm(matrix.astype(np.float32), axis=1), 1, atol=2e-3)


WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
LOCAL = WHEN.replace(tzinfo=None)
CLOCK = datetime.time(3, 4, 5, 678)
CARRIED: dict[str, tuple[pa.DataType, Any, Any]] = {
    "flag": (pa.bool_(), True, True),
    "tiny": (pa.int8(), -7, -7),
    "large": (pa.int64(), 2**40, 2**40),
    "huge": (pa.uint64(), 2**63, 2**63),
    "single": (pa.float32(), 0.5, 0.5),
    "double": (pa.float64(), 0.1, 0.1),
    "text": (pa.large_string(), "café", "café"),
    "view": (pa.string_view(), "café", "café"),
    "word": (pa.dictionary(pa.int8(), pa.string()), "red", "red"),
    "number": (pa.dictionary(pa.int32(), pa.int64()), 3, 3),
    "three": (pa.binary(3), b"\xff12", b"\xff12"),
    "day": (pa.date32(), LOCAL.date(), LOCAL.date()),
    "day64": (pa.date64(), LOCAL.date(), LOCAL.date()),
    "at_s": (pa.timestamp("s"), LOCAL.replace(microsecond=0), LOCAL.replace(microsecond=0)),
    "at_ms": (pa.timestamp("ms"), LOCAL.replace(microsecond=0), LOCAL.replace(microsecond=0)),
    "at_ns": (pa.timestamp("ns"), LOCAL, LOCAL),
    "utc_ns": (pa.timestamp("ns", "UTC"), WHEN, WHEN),
    "berlin": (pa.timestamp("us", "Europe/Berlin"), WHEN, WHEN),
    "shifted": (pa.timestamp("us", "+05:30"), WHEN, WHEN),
    "time_s": (pa.time32("s"), CLOCK.replace(microsecond=0), "03:04:05"),
    "time_us": (pa.time64("us"), CLOCK, "03:04:05.000678"),
    "took": (pa.duration("us"), datetime.timedelta(seconds=2), datetime.timedelta(seconds=2)),
    "price": (pa.decimal128(9, 2), decimal.Decimal("12.50"), decimal.Decimal("12.50")),
    "price32": (pa.decimal32(9, 2), decimal.Decimal("12.50"), decimal.Decimal("12.50")),
    "price256": (pa.decimal256(50, 2), decimal.Decimal("12.50"), "12.50"),
    "none": (pa.null(), None, None),
    "tags": (pa.list_(pa.string()), ["a", "b"], ["a", "b"]),
    "views": (pa.list_view(pa.string()), ["a", "b"], ["a", "b"]),
    "point": (pa.list_(pa.float32(), 2), [0.5, 1.5], [0.5, 1.5]),
    "times": (pa.large_list(pa.timestamp("ns")), [LOCAL], [LOCAL]),
    "both": (pa.struct([("n", pa.int32()), ("at", pa.timestamp("ns"))]), {"n": 1, "at": LOCAL}, {"n": 1, "at": LOCAL}),
    "pairs": (pa.map_(pa.string(), pa.int64()), [("a", 1)], [{"key": "a", "value": 1}]),
}
"""Columns of a user's table: type, value, and the value that readers find."""


def two_photos(folder: Path) -> list[str]:
    """The names of two new images in `folder`."""
    for name in ("a.jpg", "b.jpg"):
        photo(np.random.default_rng(0), 60, 40).save(folder / name)
    return ["a.jpg", "b.jpg"]


@pytest.fixture(scope="module")
def carried(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two increments of an Arrow file with a column of every type that Parquet can hold."""
    folder = tmp_path_factory.mktemp("carried")
    names = two_photos(folder)
    columns = {name: pa.array([value, None], kind) for name, (kind, value, _) in CARRIED.items()}
    for count in (1, 2):
        table = pa.table({"uri": names} | columns).slice(0, count)
        with pa.ipc.new_file(str(folder / "in.arrow"), table.schema) as file:
            file.write_table(table)
        command = ("run", folder / "in.arrow", "--uri-column", "uri", "--image-column", "", *DEMO)
        warm(*command, "--incremental", "--out", folder / "dataset")
    return folder / "dataset"


def _found(value: Any) -> Any:
    """A value as Python has it, whatever reader it comes from."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_found(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _found(entry) for name, entry in value.items()}
    if isinstance(value, pd.Timestamp):
        value = value.to_pydatetime()
    if isinstance(value, pd.Timedelta):
        value = value.to_pytimedelta()
    if isinstance(value, datetime.datetime) and value.tzinfo:
        return value.astimezone(datetime.UTC)
    return value


def test_every_reader_reads_every_type_of_a_carried_column_and_both_increments(
    carried: Path, read: Any, request: pytest.FixtureRequest
) -> None:
    parts = sorted(carried.glob("*/parts/*.parquet"))
    assert len(parts) == 2
    together = carried.parent / "parts"
    together.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        shutil.copy(part, together / f"{number}.parquet")
    names = ["row_id", "uri", "file_bytes", "file_modified", *CARRIED]
    if read.name == "duckdb":  # Python's fetchall needs another package for time stamps with a time zone
        quoted = ", ".join(f'"{name}"' for name in names)
        found = duckdb.sql(f"select {quoted} from '{together}/*.parquet' order by uri").arrow().read_all()
        rows_found = found.to_pylist()
    else:
        if read.name == "spark":
            request.getfixturevalue("spark").conf.set("spark.sql.session.timeZone", "UTC")
        rows_found = sorted(read(together, names), key=lambda row: row["uri"])
    first, second = ({name: _found(row[name]) for name in names} for row in rows_found)
    expected = {name: value for name, (_, _, value) in CARRIED.items()}
    if read.name in ("duckdb", "spark"):
        expected["took"] = 2_000_000  # these two have no type for it in Parquet
    if read.name == "spark":  # it returns time stamps in the session's time zone, without saying so
        expected |= {name: LOCAL for name, value in expected.items() if value == WHEN}
    wrong = {name: (first[name], value) for name, value in expected.items() if not _same(first[name], value)}
    assert wrong == {}
    assert all(value is None or value != value for name, value in second.items() if name in CARRIED)
    stamps = {row["uri"]: row for row in (pq.read_table(part).to_pylist()[0] for part in parts)}
    for row in (first, second):
        when = stamps[row["uri"]]["file_modified"]
        assert row["file_modified"] in (when, when.replace(tzinfo=None))
        assert row["file_bytes"] == stamps[row["uri"]]["file_bytes"]


def test_nanoseconds_that_are_cut_off_are_said(warm: Cli, tmp_path: Path) -> None:
    names = two_photos(tmp_path)
    table = pa.table({"uri": names, "at": pa.array([1_001, 2_000], pa.timestamp("ns"))})
    pq.write_table(table, tmp_path / "in.parquet")
    command = ("run", tmp_path / "in.parquet", "--uri-column", "uri", *DEMO, "--json", "--out", tmp_path / "run")
    note = f"(values of column 'at' of {tmp_path / 'in.parquet'} whose nanoseconds are cut off)"
    assert json.loads(warm(*command).stdout)["passed_over"] == {note: 1}
    assert rows(tmp_path / "run")["at"].cast(pa.int64()).to_pylist() == [1, 2]
