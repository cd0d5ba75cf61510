"""Archives in stores and on the web: listed in few requests, read in place."""

import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipbatch.errors import InputError
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import photo
from tests.support.packing import files, listed, names, read, tar, zipped
from tests.support.servers import Buckets, Handler, buckets, web


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    folder = tmp_path_factory.mktemp("remote")
    packed = files([f"{number}.jpg" for number in range(40)])
    sidecars = [("7.json", b"{}"), ("large.bin", bytes(9 * 2**20)), ("last.jpg", b"last")]
    with buckets() as store:
        store.put("shards")
        store.put("shards/s-0.tar", tar(folder / "0.tar", [*packed, *sidecars]).read_bytes())
        store.put("shards/s-1.zip", zipped(folder / "1.zip", [*packed, *sidecars], zipfile.ZIP_DEFLATED).read_bytes())
        yield store


@pytest.mark.parametrize("name", ["s-0.tar", "s-1.zip"])
def test_an_archive_in_a_store_is_listed_and_read_in_place(here: Buckets, name: str) -> None:
    url = f"s3://shards/{name}"
    found, passed_over = listed(url, columns=("json",))
    packed = files([f"{number}.jpg" for number in range(40)])
    assert [row["uri"] for row in found] == [*(f"{url}#{number}.jpg" for number in range(40)), f"{url}#last.jpg"]
    assert read(found) == ["empty: 0 bytes", *(data for _, data in packed[1:]), b"last"]
    assert [row["json"] for row in found] == [None] * 7 + ["{}"] + [None] * 33
    assert passed_over == {".bin": 1, "(images without .json)": 40}


def test_braces_work_in_urls(here: Buckets) -> None:
    found, _ = listed("s3://shards/s-{0.tar,1.zip}")
    assert len(found) == 82
    assert names(found[:1]) == names(found[41:42]) == ["0.jpg"]


def test_a_folder_and_a_pattern_of_archives_in_a_store_are_inputs(here: Buckets, tmp_path: Path) -> None:
    here.put("folder")
    for name in ("a.tar", "b.tar"):
        here.put(f"folder/all/{name}", tar(tmp_path / name, [(f"{name}.jpg", name.encode())]).read_bytes())
    here.put("folder/all/notes.md", b"x")
    found, passed_over = listed("s3://folder/all/")
    assert [row["uri"] for row in found] == [f"s3://folder/all/{name}#{name}.jpg" for name in ("a.tar", "b.tar")]
    assert read(found) == [b"a.tar", b"b.tar"]
    assert passed_over == {".md": 1}
    assert [row["uri"] for row in listed("s3://folder/a*/b*.tar")[0]] == ["s3://folder/all/b.tar#b.tar.jpg"]
    here.put("folder/all/more/x.jpg", b"x")
    with pytest.raises(InputError, match=r"is ambiguous: it holds archives .* and folders \(more\)"):
        listed("s3://folder/all")


def test_an_archive_that_does_not_exist_in_a_store_is_refused(here: Buckets) -> None:
    with pytest.raises(InputError, match=r"cannot read the archive s3://shards/none.tar: .*; make it readable"):
        listed("s3://shards/none.tar")


def test_an_archive_on_the_web_is_listed_and_read_in_pieces(tmp_path: Path) -> None:
    data = tar(tmp_path / "x.tar", [("1.jpg", b"one"), ("big.jpg", bytes(9 * 2**20)), ("2.jpg", b"two")]).read_bytes()
    asked: list[int] = []

    def ranges(handler: Handler) -> None:
        first, _, last = handler.headers.get("Range", f"bytes=0-{len(data)}").removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last or len(data)) + 1]
        asked.append(len(piece))
        end = int(first) + len(piece) - 1
        handler.head(206, Content_Length=len(piece), Content_Range=f"bytes {first}-{end}/{len(data)}", ETag='"1"')
        handler.send(piece)

    with web() as server:
        server.answers["/x.tar"] = ranges
        found, _ = listed(f"{server.root}/x.tar")
        assert names(found) == ["1.jpg", "big.jpg", "2.jpg"]
        assert len(asked) <= 5
        assert read(found) == [b"one", bytes(9 * 2**20), b"two"]


def test_a_run_over_a_shard_in_a_store_has_the_scores_of_the_local_one(
    warm: Cli, store: Buckets, tmp_path: Path
) -> None:
    rng, images = np.random.default_rng(4), []
    for number in range(20):
        photo(rng, 90, 70).save(tmp_path / "x.png")
        images.append((f"{number}.png", (tmp_path / "x.png").read_bytes()))
    store.put("shards/run.tar", tar(tmp_path / "run.tar", images).read_bytes())
    for text, out in ((tmp_path / "run.tar", "local"), ("s3://shards/run.tar", "remote")):
        made: subprocess.CompletedProcess[str] = warm("run", text, *DEMO, "--out", tmp_path / out, env=store.env)
        assert "20 images: 20 ok" in made.stdout
    local, remote = (rows(tmp_path / out).drop_columns("uri") for out in ("local", "remote"))
    assert local.equals(remote)
