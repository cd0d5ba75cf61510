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
from tests.support.packing import tar
from tests.support.servers import body, status, web

SMALL = ("--batch-size", 4, "--shard-size", 4, "--incremental")
PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "increments.md").read_text()


def put(path: Path, content: int) -> None:
    path.write_bytes(encoded(Version(content=content, time_ns=0)))
    set_time(path, (1_600_000_000 + content) * 10**9)


def increments(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("increment-*/run.json"))


def latest(out: Path) -> list[tuple[str, tuple[int, int]]]:
    """The uris of `latest.parquet`, and width and height of the rows that it points to."""
    found = []
    for row in pq.read_table(out / "latest.parquet").to_pylist():
        assert row["part"].startswith(f"{row['increment']}/parts/")
        table = pq.read_table(out / row["part"], filters=[("row_id", "=", row["row_id"])])
        (its,) = table.to_pylist()
        assert its["uri"] == row["uri"]
        found.append((its["uri"], (its["width"], its["height"])))
    return sorted(found)


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


class Manifest:
    """A dataset of a table of images, four of them, which are contents 1 to 4."""

    def __init__(self, warm: Cli, root: Path) -> None:
        self.warm, self.table, self.out = warm, root / "products.csv", root / "dataset"
        for content in range(1, 5):
            put(root / f"{content}.jpg", content)

    def night(self, text: str, *more: object, code: int = 0) -> Any:
        self.table.write_text(text)
        said = self.warm("run", self.table, *DEMO, *SMALL, *more, "--json", "--out", self.out, code=code)
        return said.stderr if code else json.loads(said.stdout)

    def counts(self, text: str) -> tuple[int, int, int]:
        made = self.night(text)["increment"]
        return made["new"], made["changed"], made["known"]

    def last(self) -> list[dict[str, Any]]:
        return rows_of(increments(self.out)[-1])


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
    manifest.night("image,price,code\n1.jpg,4,7\n")
    manifest.out.rename(first := manifest.out.with_name("first"))
    manifest.night("image,price,code\n2.jpg,4.5,x\n")
    (manifest.out / "increment-00001").rename(first / "increment-00002")
    shutil.rmtree(manifest.out)
    first.rename(manifest.out)
    table = "image,price,code\n1.jpg,4,7\n2.jpg,4.5,x\n3.jpg,5,8\n"
    assert manifest.counts(table) == (1, 0, 2)
    (row,) = manifest.last()
    assert (row["price"], row["code"]) == (5.0, "8")
    assert manifest.counts(table + "4.jpg,1.5,y\n") == (1, 0, 3)
    manifest.warm("compact", manifest.out, "--out", few := manifest.out.with_name("few"))
    found = pq.read_table(few).select(["price", "code"]).to_pylist()
    assert [(row["price"], row["code"]) for row in found] == [(4.0, "7"), (4.5, "x"), (5.0, "8"), (1.5, "y")]


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


def test_an_image_that_is_named_twice_is_marked_and_comes_back_with_both_rows(manifest: Manifest) -> None:
    table = "image\n1.jpg\n1.jpg\n2.jpg\n3.jpg\n"
    manifest.night(table)
    manifest.night(table.replace("1.jpg\n", ""), "--mark-deleted", "--confirm-deleted")
    assert pq.read_table(manifest.out / "deleted.parquet")["row_id"].to_pylist() == [0, 1]
    notes = manifest.night(table, "--mark-deleted")["notes"]
    assert notes == ["images that were marked as deleted and are back: 2"]
    assert pq.read_table(manifest.out / "deleted.parquet").num_rows == 0
    assert pq.read_table(manifest.out / "latest.parquet")["row_id"].to_pylist() == [0, 1, 2, 3]


def test_of_an_image_s_rows_only_those_that_the_table_has_no_more_are_marked(manifest: Manifest) -> None:
    table = "image,product\n1.jpg,a\n1.jpg,a\n1.jpg,b\n2.jpg,a\n2.jpg,b\n3.jpg,a\n"
    mark = ("--mark-deleted", "--confirm-deleted")
    manifest.night(table)
    assert manifest.night(table, *mark)["notes"] == []
    manifest.night(table.replace("1.jpg,b\n", "").replace("2.jpg,a\n", ""), *mark)
    assert pq.read_table(manifest.out / "deleted.parquet")["row_id"].to_pylist() == [2, 3]
    assert manifest.night(table, *mark)["notes"] == ["images that were marked as deleted and are back: 2"]


class Gone:
    """A dataset of twenty images in one folder and two in another."""

    def __init__(self, warm: Cli, root: Path) -> None:
        self.warm, self.images, self.others, self.out = warm, root / "in", root / "others", root / "dataset"
        for folder, count in ((self.images, 20), (self.others, 2)):
            folder.mkdir()
            for number in range(count):
                put(folder / f"{number:02d}.jpg", count * 2 + number)
            self.night(folder)

    def night(self, *inputs: object, code: int = 0) -> Any:
        said = self.warm("run", *(inputs or (self.images,)), *DEMO, *SMALL, "--json", "--out", self.out, code=code)
        return said.stderr if code else json.loads(said.stdout)

    def marked(self) -> set[str]:
        if not (self.out / "deleted.parquet").exists():
            return set()
        return {Path(uri).name for uri in pq.read_table(self.out / "deleted.parquet")["uri"].to_pylist()}

    def latest(self) -> set[str]:
        uris = pq.read_table(self.out / "latest.parquet")["uri"].to_pylist()
        return {str(Path(uri).relative_to(self.images.parent)) for uri in uris}


def test_images_that_are_gone_are_marked_and_come_back(warm: Cli, tmp_path: Path) -> None:
    gone = Gone(warm, tmp_path)
    everything = gone.latest()
    (gone.images / "00.jpg").unlink()
    gone.night()
    assert gone.marked() == set()  # only if asked
    (gone.images / "01.jpg").unlink()
    said = gone.night(gone.images, "--mark-deleted")
    assert said["notes"] == [f"images that are gone, now marked in {gone.out / 'deleted.parquet'}: 2"]
    assert gone.marked() == {"00.jpg", "01.jpg"}
    assert everything - gone.latest() == {"in/00.jpg", "in/01.jpg"}
    put(tmp_path / "one.jpg", 55)
    said = gone.night(tmp_path / "one.jpg", "--mark-deleted")
    assert said["notes"] == [
        f"no image is marked as deleted, since no increment has all of its INPUT in {tmp_path / 'one.jpg'}"
    ]
    everything.add("one.jpg")
    before = (gone.out / "deleted.parquet").read_bytes()
    assert gone.night(gone.images, "--mark-deleted")["notes"] == []
    assert (gone.out / "deleted.parquet").read_bytes() == before
    for name in ("deleted", "latest"):
        path = gone.out / f"{name}.parquet"
        whole = path.read_bytes()
        path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        said = warm("verify", gone.out, "--json", code=5)
        assert json.loads(said.stdout)["problems"] == [f"{path}: damaged"]
        path.write_bytes(whole)
    assert "remedy: remove it; the next night makes it again" in said.stderr
    warm("verify", gone.out)
    put(gone.images / "01.jpg", 50)  # it has changed, so a row that is marked is not the latest any more
    said = gone.night()
    assert (said["increment"]["changed"], said["increment"]["known"]) == (1, 18)
    assert "images that were marked as deleted and are back: 1" in said["notes"]
    assert (gone.marked(), gone.latest()) == ({"00.jpg"}, everything - {"in/00.jpg"})
    put(gone.images / "00.jpg", 40)  # as it was
    said = gone.night()
    assert (said["increment"]["folder"], said["increment"]["known"]) == (None, 20)
    assert "images that were marked as deleted and are back: 1" in said["notes"]
    assert (gone.marked(), gone.latest()) == (set(), everything)


def test_a_folder_that_is_not_mounted_marks_nothing(warm: Cli, tmp_path: Path) -> None:
    gone = Gone(warm, tmp_path)
    for number in range(3):
        (gone.images / f"{number:02d}.jpg").unlink()
    put(gone.images / "new.jpg", 60)
    said = gone.night(gone.images, "--mark-deleted", code=3)
    assert f"3 of 20 images of {gone.images} are gone, more than 10%, so nothing is marked as deleted" in said
    assert (len(increments(gone.out)), gone.marked()) == (2, set())
    for path in gone.images.iterdir():
        path.unlink()
    assert "holds no images" in gone.night(gone.images, "--mark-deleted", "--confirm-deleted", code=3)
    put(gone.images / "new.jpg", 60)
    gone.night(gone.images, "--mark-deleted", "--confirm-deleted")
    assert len(gone.marked()) == 20
    assert gone.latest() == {"in/new.jpg", "others/00.jpg", "others/01.jpg"}  # the other input is as it was
    for option in ("--mark-deleted", "--confirm-deleted"):
        said = warm("run", gone.images, *DEMO, option, "--out", tmp_path / "run", code=3).stderr
        assert f"{option} is for --incremental" in said
    assert "leave --limit out" in gone.night(gone.images, "--mark-deleted", "--limit", 5, code=3)


def test_what_cannot_be_listed_whole_marks_nothing(warm: Cli, tmp_path: Path) -> None:
    images, shop, out = tmp_path / "in", tmp_path / "shop", tmp_path / "dataset"
    for folder, first, count in ((images, 10, 29), (shop, 50, 2)):
        folder.mkdir()
        for number in range(count):
            put(folder / f"{number:02d}.jpg", first + number)
    os.symlink(shop, images / "shop")
    os.symlink("annex/film.mp4", images / "film.mp4")  # never led anywhere, so no image was behind it
    members = [(f"{content}.jpg", encoded(Version(content=content, time_ns=0))) for content in range(1, 4)]
    archive = tar(tmp_path / "some.tar", members)
    command = ("run", images, archive, *DEMO, *SMALL, "--mark-deleted", "--confirm-deleted", "--out", out)
    warm(*command)
    shop.rename(tmp_path / "unmounted")
    put(images / "new.jpg", 60)
    said = warm(*command, code=3).stderr
    assert f"2 images of {images}, {archive} were not found, but not all of {images / 'shop'} could be listed" in said
    assert (len(increments(out)), (out / "deleted.parquet").exists()) == (1, False)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: whole.index(b"2.jpg") + 600])
    said = warm(*command, code=3).stderr
    assert f"but not all of {images / 'shop'} and 1 more could be listed" in said
    (tmp_path / "unmounted").rename(shop)
    assert f"were not found, but not all of {archive} could be listed" in warm(*command, code=3).stderr
    archive.write_bytes(whole)
    set_time(archive, archive.stat().st_mtime_ns)
    warm(*command)
    assert (len(pq.read_table(out / "latest.parquet")), (out / "deleted.parquet").exists()) == (35, False)
    (images / "00.jpg").unlink()
    warm(*command)
    assert pq.read_table(out / "deleted.parquet")["uri"].to_pylist() == [str(images / "00.jpg")]


def test_a_table_of_a_pattern_that_leads_nowhere_marks_nothing(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text(f"image\n{tmp_path}/1.jpg\n")
    manifest.table.write_text("image\n2.jpg\n")
    os.symlink(manifest.table, tmp_path / "lists" / "b.csv")
    command = ("run", tmp_path / "lists" / "*.csv", *DEMO, *SMALL, "--mark-deleted", "--root", tmp_path)
    command = (*command, "--confirm-deleted", "--out", manifest.out)
    manifest.warm(*command)
    manifest.table.unlink()
    said = manifest.warm(*command, code=3).stderr
    assert f"but not all of {tmp_path / 'lists' / 'b.csv'} could be listed" in said


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
