"""Whole runs over images in an object store: the same rows as over the same files on a disk."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.conftest import DEMO, Cli, error_in, rows
from tests.support.servers import Buckets, buckets


@pytest.fixture(scope="module")
def store() -> Iterator[Buckets]:
    with buckets() as store:
        yield store


@pytest.fixture(scope="module")
def local(warm: Cli, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A folder of photographs and one broken file, and what a run over it gives."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(photos.glob("*.jpg"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    out = tmp_path_factory.mktemp("local") / "out"
    warm("run", folder, *DEMO, "--out", out)
    return folder, rows(out).drop_columns(["uri", "row_id"])


@pytest.fixture(scope="module")
def photos_there(store: Buckets, local: tuple[Path, pa.Table]) -> list[str]:
    """The names of the photographs of `local`, which are in the store too, at s3://photos/in/."""
    store.put("photos")
    for path in local[0].iterdir():
        store.put(f"photos/in/{path.name}", path.read_bytes())
    return sorted(path.name for path in local[0].iterdir())


def test_a_run_over_a_remote_folder_gives_what_local_files_give(
    warm: Cli, store: Buckets, photos_there: list[str], local: tuple[Path, pa.Table], tmp_path: Path
) -> None:
    warm("run", "s3://photos/in/", *DEMO, "--out", tmp_path / "out", env=store.env)
    found = rows(tmp_path / "out")
    assert found["uri"].to_pylist() == [f"s3://photos/in/{name}" for name in photos_there]
    assert found.drop_columns(["uri", "row_id"]).equals(local[1])


def test_a_run_over_a_remote_manifest_gives_what_local_files_give(
    warm: Cli, store: Buckets, photos_there: list[str], local: tuple[Path, pa.Table], tmp_path: Path
) -> None:
    store.put("photos/list.txt", "\n".join([*photos_there, "none.jpg", "s3://photos/list.txt"]).encode())
    run = ("run", "s3://photos/list.txt", "--root", "s3://photos/in", *DEMO, "--out", tmp_path / "out")
    warm(*run, env=store.env)
    warm(*run, env=store.env)  # the same run again: where the copy of the manifest lay is no part of what it is
    found, images = rows(tmp_path / "out"), len(photos_there)
    assert found["uri"].to_pylist()[:images] == photos_there
    assert found["status"].to_pylist()[images:] == ["missing", "unreadable"]
    assert found["error"].to_pylist()[-1] == "outside of --root s3://photos/in"
    assert found.slice(0, images).drop_columns(["uri", "row_id"]).equals(local[1])


def test_a_run_that_cannot_reach_its_input_ends_with_one_line(warm: Cli, store: Buckets, tmp_path: Path) -> None:
    dead = store.env | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    begun = time.monotonic()
    refused = warm("run", "s3://bucket/photos/", *DEMO, "--out", tmp_path / "out", code=3, env=dead).stderr
    assert "cannot list s3://bucket/photos/" in refused
    assert "check the name, the credentials and the network" in refused
    assert error_in(refused)
    assert time.monotonic() - begun < 120
    assert not os.path.lexists(tmp_path / "out")
