"""What a night with --mark-deleted marks, what comes back, and where it marks nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import DEMO, Cli
from tests.support.history import Version, encoded, set_time
from tests.support.nights import SMALL, Manifest, increments, put
from tests.support.packing import tar


@pytest.fixture
def manifest(warm: Cli, tmp_path: Path) -> Manifest:
    return Manifest(warm, tmp_path)


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
