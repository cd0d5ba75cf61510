"""A dataset of increments as one: its table of latest rows, what counts as changed, what is gone, and its copy."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.rundir.checksum import verify_file
from clipbatch.storage.failures import may_pass
from tests.conftest import DEMO, Cli
from tests.support.history import Version, encoded, rows_of, set_time, shape
from tests.support.nights import SMALL, Manifest, increments, latest, put
from tests.support.packing import tar
from tests.support.servers import body, status, web

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "increments.md").read_text()


class Nights:
    """Thirty nights: each adds an image, every third one changes one, every fifth one takes one away."""

    def __init__(self, warm: Cli, root: Path) -> None:
        self.images, self.out = root / "in", root / "dataset"
        self.images.mkdir()
        self.command = ("run", self.images, *DEMO, *SMALL, "--mark-deleted", "--confirm-deleted", "--out", self.out)
        self.there: dict[str, int] = {}
        self.gone: set[str] = set()
        for night in range(30):
            self._put(f"{night:02d}.jpg", night + 1)
            if night % 3 == 2:
                self._put(f"{night // 3:02d}.jpg", 100 + night)
            if night % 5 == 4:
                self._take(f"{night - 1:02d}.jpg")
            warm(*self.command)

    def _put(self, name: str, content: int) -> None:
        put(self.images / name, content)
        self.there[str(self.images / name)] = content
        self.gone.discard(str(self.images / name))

    def _take(self, name: str) -> None:
        (self.images / name).unlink()
        del self.there[str(self.images / name)]
        self.gone.add(str(self.images / name))

    def expected(self) -> list[tuple[str, tuple[int, int] | tuple[None, None]]]:
        """The latest row of each image. An image of every ninth content is broken."""
        return sorted((uri, shape(c) if c % 9 else (None, None)) for uri, c in self.there.items())


@pytest.fixture(scope="module")
def nights(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights(warm, tmp_path_factory.mktemp("nights"))


def blocks(kind: str) -> list[str]:
    section = PAGE.split("\n## The latest row of each image\n")[1].split("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_thirty_nights_have_one_row_for_each_image_that_is_there(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(increments(nights.out)) == 30
    expected = nights.expected()
    assert latest(nights.out) == expected
    deleted = pq.read_table(nights.out / "deleted.parquet")
    assert set(deleted["uri"].to_pylist()) == nights.gone
    monkeypatch.chdir(nights.out.parent)
    (query,) = blocks("sql")
    labels = duckdb.sql(query).fetchall()
    assert [uri for uri, *_ in labels] == [uri for uri, _ in expected]
    by_polars, by_pandas = (exec_block(code)["table"] for code in blocks("python"))
    assert isinstance(by_polars, pl.DataFrame)
    assert isinstance(by_pandas, pd.DataFrame)
    assert sorted(by_polars["uri"].to_list()) == [uri for uri, _ in expected]
    sizes = by_pandas[["uri", "width", "height"]].astype(object)
    sizes = sizes.where(sizes.notna(), None)
    assert sorted((uri, (w, h)) for uri, w, h in sizes.itertuples(index=False)) == expected
    found = dict(zip(by_polars["uri"], by_polars["label"], strict=True))
    assert found == {uri: label for uri, label, *_ in labels}


def exec_block(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_table_is_made_again_where_it_is_missing_damaged_or_old(nights: Nights, warm: Cli, tmp_path: Path) -> None:
    shutil.copytree(nights.out, out := tmp_path / "dataset")
    command = (*nights.command[:-1], out)
    path = out / "latest.parquet"
    whole, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert verify_file(whole)
    assert f"{len(nights.there)} images are known" in warm(*command).stdout
    assert path.stat().st_mtime_ns == stamp
    for damage in (b"", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        path.write_bytes(damage)
        assert "a table of the dataset is not as it should be:" in warm("verify", out, code=5).stderr
        warm(*command)
        assert path.read_bytes() == whole
    path.unlink()
    warm(*command)
    assert path.read_bytes() == whole
    shutil.rmtree(out / "increment-00030")
    warm(*command)
    assert latest(out) == nights.expected()
    deleted = (out / "deleted.parquet").read_bytes()
    (out / "deleted.parquet").write_bytes(deleted[:-9])
    assert f"{out / 'deleted.parquet'} is damaged: restore it" in warm(*command, code=3).stderr


def test_compact_copies_the_latest_rows_of_thirty_nights(nights: Nights, warm: Cli, tmp_path: Path) -> None:
    out = tmp_path / "few"
    command = ("compact", nights.out, "--out", out, "--rows-per-file", 9)
    said = json.loads(warm(*command, "--json").stdout)
    count = len(nights.there)
    assert (said["rows"], said["files"], said["source_may_be_deleted"]) == (count, -(-count // 9), False)
    paths = sorted(out.iterdir())
    assert [path.name for path in paths] == [f"part-{n:05d}-of-{said['files']:05d}.parquet" for n in range(len(paths))]
    assert all(verify_file(path.read_bytes()) for path in paths)
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    rows = table.to_pylist()
    assert sorted((row["uri"], (row["width"], row["height"])) for row in rows) == nights.expected()
    for row in rows:
        its = next(r for r in rows_of(nights.out / row.pop("increment")) if r["row_id"] == row["row_id"])
        assert row == its
    stamps = {path: path.stat().st_mtime_ns for path in paths}
    paths[1].unlink()
    warm(*command)
    assert {path: path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()}[paths[0]]
    assert pa.concat_tables([pq.read_table(path) for path in paths]).equals(table)


@pytest.fixture
def manifest(warm: Cli, tmp_path: Path) -> Manifest:
    return Manifest(warm, tmp_path)


def test_a_changed_column_counts_as_changed_also_of_an_image_with_two_rows(manifest: Manifest) -> None:
    first = "image,product,caption,price\n1.jpg,A,a cat,1.5\n1.jpg,B,a cat,\n2.jpg,C,a dog,nan\n"
    assert manifest.counts(first) == (3, 0, 0)
    assert manifest.counts(first) == (0, 0, 3)
    assert manifest.counts(first.replace("a dog", "a wolf")) == (0, 1, 2)
    assert manifest.last()[0]["caption"] == "a wolf"
    second = first.replace("a dog", "a wolf").replace("B,a cat", "B,a tiger")
    assert manifest.counts(second) == (0, 2, 1)  # both rows of the image
    assert sorted(row["product"] for row in manifest.last()) == ["A", "B"]
    assert manifest.counts(second) == (0, 0, 3)
    third = second + "1.jpg,D,a third,2\n"
    assert manifest.counts(third) == (0, 3, 1)
    assert manifest.counts("\n".join([third.splitlines()[0], *third.splitlines()[:0:-1], ""])) == (0, 0, 4)
    index = pq.read_table(manifest.out / "latest.parquet")
    assert sorted(index["uri"].to_pylist()) == ["1.jpg", "1.jpg", "1.jpg", "2.jpg"]
    put(manifest.table.parent / "1.jpg", 9)
    assert manifest.counts(third) == (0, 3, 1)


def test_a_column_that_comes_or_goes_changes_no_image(manifest: Manifest) -> None:
    manifest.night("image,price\n1.jpg,1\n2.jpg,2\n")
    made = manifest.night("image,price,season\n1.jpg,1,old\n3.jpg,3,new\n")
    assert (made["increment"]["new"], made["increment"]["changed"]) == (1, 0)
    assert "columns that no increment had before: 'season'" in made["notes"][0]
    made = manifest.night("image\n2.jpg\n4.jpg\n")
    assert (made["increment"]["new"], made["increment"]["changed"]) == (1, 0)
    assert "columns that the input does not have any more" in made["notes"][0]
    (row,) = manifest.last()
    assert (row["price"], row["season"]) == (None, None)
    schemas = [pq.read_schema(next(path.glob("parts/*.parquet"))) for path in increments(manifest.out)]
    assert [field.type for field in schemas[1] if field.name in ("price", "season")] == [pa.int64(), pa.string()]
    assert schemas[2].equals(schemas[1], check_metadata=False)


def test_columns_keep_the_types_of_the_first_increment(manifest: Manifest) -> None:
    manifest.night("image,price,code,weight,day\n1.jpg,4,A7,0.5,2026-01-02\n")
    manifest.night("image,price,code,weight,day\n2.jpg,5,007,2,\n")  # a number in place of text, whole ones of double
    (row,) = manifest.last()
    assert (row["price"], row["code"], row["weight"], row["day"]) == (5, "007", 2.0, None)
    manifest.night("image,price,code,weight,day\n3.jpg,5.0,4.50,3,2026-01-03\n")
    (row,) = manifest.last()
    assert (row["price"], row["code"]) == (5, "4.50")  # text as it stands in the file
    said = manifest.night("image,price,code,weight,day\n1.jpg,4,A7,0.5,2026-01-02\n4.jpg,4.5,x,1,\n", code=3)
    assert f"column 'price' is int64 in this dataset, and row 1 (from 0) of {manifest.table} has 4.5" in said
    said = manifest.night("image,price,code,weight,day\n4.jpg,4,x,1,soon\n", code=3)
    assert "column 'day' is date32[day] in this dataset, and row 0 (from 0)" in said
    assert "has 'soon'" in said
    said = manifest.night("image,price,code,weight,day\n3.jpg,12345678901234567890,x,1,\n", code=3)
    assert "has 12345678901234567890" in said
    assert len(increments(manifest.out)) == 3
    parts = f"{manifest.out}/*/parts/*.parquet"
    assert pl.scan_parquet(parts).select("price", "code").collect().schema == {"price": pl.Int64, "code": pl.String}


def test_a_dataset_with_two_types_of_a_column_goes_on_with_the_wider_one(manifest: Manifest) -> None:
    """As older versions left it: the second night's table had another type."""
    manifest.night("image,price,code,id\n1.jpg,4,7,9007199254740993\n")
    manifest.out.rename(first := manifest.out.with_name("first"))
    manifest.night("image,price,code,id\n2.jpg,4.5,x,7.0\n")  # a double cannot hold the id of the first night
    (manifest.out / "increment-00001").rename(first / "increment-00002")
    shutil.rmtree(manifest.out)
    first.rename(manifest.out)
    table = "image,price,code,id\n1.jpg,4,7,9007199254740993\n2.jpg,4.5,x,7\n3.jpg,5,8,9007199254740995\n"
    assert manifest.counts(table) == (1, 0, 2)
    (row,) = manifest.last()
    assert (row["price"], row["code"], row["id"]) == (5.0, "8", 9007199254740995)
    assert manifest.counts(table + "4.jpg,1.5,y,\n") == (1, 0, 3)
    manifest.warm("compact", manifest.out, "--out", few := manifest.out.with_name("few"))
    found = pq.read_table(few).select(["price", "code", "id"])
    assert [found["price"].to_pylist(), found["code"].to_pylist()] == [[4.0, 4.5, 5.0, 1.5], ["7", "x", "8", "y"]]
    assert found["id"].to_pylist() == [9007199254740993, 7, 9007199254740995, None]
    said = manifest.night("image,id\n4.jpg,4.5\n", code=3)
    assert "column 'id' is int64 in this dataset" in said
    assert "has 4.5: correct the value, or label this input into another dataset" in said


def test_a_column_without_values_keeps_no_type_and_no_night_from_running(warm: Cli, tmp_path: Path) -> None:
    """As pandas writes a column of None."""
    table, out = tmp_path / "list.parquet", tmp_path / "dataset"
    values: list[str | int | None] = []
    for number, (value, expected) in enumerate([(None, "null"), ("x", "string"), (None, "string"), ("y", "string")]):
        put(image := tmp_path / f"{number}.jpg", number + 1)
        values.append(value)
        only = number == 2  # a list of what is new, none of which has a value
        notes = pa.array(values[-1:] if only else values)
        images = [str(image)] if only else [str(tmp_path / f"{each}.jpg") for each in range(number + 1)]
        pq.write_table(pa.table({"image": images, "note": notes}), table)
        said = json.loads(warm("run", table, *DEMO, *SMALL, "--out", out, "--json").stdout)["increment"]
        assert (said["new"], said["changed"], said["known"]) == (1, 0, len(images) - 1)
        (part,) = Path(said["folder"]).glob("parts/*.parquet")
        assert str(pq.read_schema(part).field("note").type) == expected
    warm("compact", out, "--out", few := tmp_path / "few")
    assert pq.read_table(few)["note"].to_pylist() == values


def test_an_input_is_the_same_with_a_slash_a_dot_and_by_a_link(warm: Cli, tmp_path: Path) -> None:
    images = tmp_path / "php"
    (images / "deep").mkdir(parents=True)
    for number in range(11):
        put(images / ("deep" if number % 2 else "") / f"{number:02d}.jpg", number + 10)
    os.symlink(images, tmp_path / "link")
    command = (*DEMO, *SMALL, "--mark-deleted", "--json", "--out", "dataset")
    warm("run", "php", *command, cwd=tmp_path)
    (images / "00.jpg").unlink()
    for name in ("php/", "./php", "link", "link/", str(images), f"{images}/../php//", "php"):
        said = json.loads(warm("run", name, *command, cwd=tmp_path).stdout)["increment"]
        assert said == {"folder": None, "new": 0, "changed": 0, "known": 10}, name
    assert pq.read_table(tmp_path / "dataset" / "deleted.parquet")["uri"].to_pylist() == ["php/00.jpg"]
    warm("run", "php", *DEMO, "--out", "run", cwd=tmp_path)
    for name in ("php/", "./php", "link"):
        assert "nothing was left to do" in warm("run", name, *DEMO, "--out", "run", cwd=tmp_path).stdout
    os.unlink(tmp_path / "link")
    os.symlink(images / "deep", tmp_path / "link")
    assert "inputs is" in warm("run", "link", *DEMO, "--out", "run", cwd=tmp_path, code=3).stderr
    (tmp_path / "packed").mkdir()
    os.symlink("packed", tmp_path / "again")
    pictures = [encoded(Version(content=content, time_ns=0)) for content in (1, 2)]
    tar(tmp_path / "packed" / "x.tar", [(f"{number}.jpg", data) for number, data in enumerate(pictures)])
    pq.write_table(pa.table({"image": pictures}), tmp_path / "packed" / "x.parquet")
    for place in ("packed", "./packed", "again", str(tmp_path / "packed")):
        for kind in ("tar", "parquet"):
            said = warm("run", f"{place}/x.{kind}", *command[:-1], f"dataset-{kind}", cwd=tmp_path)
            made = json.loads(said.stdout)["increment"]
            assert (made["new"], made["known"]) == ((2, 0) if place == "packed" else (0, 2)), (place, kind)


def test_failures_that_may_pass_are_tried_again_the_next_night(warm: Cli, tmp_path: Path) -> None:
    with web() as server:
        names = ("late", "dead", "dead", "gone", "good")  # two rows of an image are tried together
        server.answers |= {"/late": status(503), "/dead": status(503), "/gone": status(404)}
        server.answers["/good"] = body(encoded(Version(content=1, time_ns=0)))
        (tmp_path / "list.txt").write_text("".join(f"{server.root}/{name}\n" for name in names))
        command = ("run", tmp_path / "list.txt", *DEMO, *SMALL, "--read-retries", 0, "--max-refused", 0, "--json")

        def night() -> tuple[int, int, int]:
            report = json.loads(warm(*command, "--out", tmp_path / "dataset").stdout)
            made = report["increment"]
            again = [note for note in report["notes"] if "tried again, as their failure may have passed" in note]
            assert [int(note.split()[0]) for note in again] == ([made["changed"]] if made["changed"] else [])
            return made["new"], made["changed"], made["known"]

        assert night() == (5, 0, 0)
        assert night() == (0, 3, 2)
        server.answers["/late"] = server.answers["/good"]
        assert night() == (0, 3, 2)
        last = {row["uri"][-4:]: row["status"] for path in increments(tmp_path / "dataset") for row in rows_of(path)}
        assert last == {"late": "ok", "dead": "unreadable", "gone": "missing", "good": "ok"}
        for _ in range(4):
            assert night() == (0, 2, 3)
        assert night() == (0, 0, 5)  # after the seventh night it is left alone


@pytest.mark.parametrize(
    ("status", "error", "passes"),
    [
        ("timeout", "no answer within 60 s while reading 'a.jpg'", True),
        ("timeout", "decoding it took longer than 60 s", False),
        ("unreadable", "the server says 429 Too Many Requests", True),
        ("unreadable", "the server says 403 Forbidden", False),
        ("unreadable", "no connection to example.org: Connection refused", True),
        ("unreadable", "When reading 'a': AWS Error SLOW_DOWN during GetObject operation: slow", True),
        ("unreadable", "When reading 'a': AWS Error ACCESS_DENIED during GetObject operation: no", False),
        ("unreadable", os.strerror(5), True),
        ("unreadable", os.strerror(13), False),
        ("unreadable", "a folder, not a file", False),
        ("truncated", "the connection ended early: 5 of 9 bytes", True),
        ("truncated", "3 of 9 bytes", False),
        ("corrupt", "the server says 503", False),
        ("missing", "the server says 404 Not Found", False),
    ],
)
def test_which_failures_may_pass(status: str, error: str, passes: bool) -> None:
    assert may_pass(status, error) is passes


OLD = Path(__file__).parents[1] / "fixtures" / "dataset-10ea018"
TIME_NS = 1_600_000_000_123_456_789  # of its pictures, by `fixtures/make_dataset.py`


def test_a_dataset_of_an_older_version_goes_on_with_its_columns(
    warm: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(OLD, tmp_path / "old"))
    for path in Path("images").iterdir():
        set_time(path, TIME_NS)
    settings = ("--model", "clipbatch-demo", "--precision", "fp32", "--device", "cpu", "--labels", "cat,dog,bird")
    here = "/proc/self/cwd"
    command = ("run", f"{here}/list.csv", *settings, "--root", f"{here}/images", "--incremental", "--out", "dataset")
    assert "nothing is new or changed: 5 images are known" in warm(*command).stdout
    out = Path("dataset")
    index = pq.read_table(out / "latest.parquet").to_pylist()
    expected = {(path.name, row["row_id"], row["uri"]) for path in increments(out) for row in rows_of(path)}
    assert {(row["increment"], row["row_id"], row["uri"]) for row in index} == expected
    table = Path("list.csv").read_text().replace("bird-1.jpg,5", "bird-1.jpg,5.0")
    Path("list.csv").write_text(table.replace("deer-1.jpg,7", "deer-1.jpg,8"))
    assert "0 new images, 1 changed, 4 known" in warm(*command).stdout
    schemas = [pq.read_schema(next(path.glob("parts/*.parquet"))) for path in increments(out)]
    assert [schema.field("file_modified").type for schema in schemas] == [pa.timestamp("ns")] * 3
    assert all(schema.equals(schemas[0], check_metadata=False) for schema in schemas)
    for path in increments(out):
        warm("verify", path)
    assert "keep dataset/increment-00001, an increment" in warm("compact", increments(out)[0], "--out", "one").stdout
    warm("verify", "one")
    warm("compact", "dataset", "--out", "few")
    few = pq.read_table("few")
    assert few.schema.field("file_modified").type == pa.timestamp("us")
    assert few.schema.field("taken").type == pa.timestamp("us")
    assert sorted(few["price"].drop_null().to_pylist()) == [4, 5, 6, 8]
