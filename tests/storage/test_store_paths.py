"""A run directory in an object store is one like any other: the same parts, resumed, verified, refused."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tests.conftest import DEMO, Cli, error_in, rows, start
from tests.support.corpus import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 200, seed=4, bad_fraction=0.1)
    return folder


@pytest.fixture(scope="module")
def whole(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of the same run in a local folder."""
    out = tmp_path_factory.mktemp("local") / "out"
    warm("run", folder, *DEMO, "--shard-size", 64, "--out", out)
    return rows(out)


def stored(s3: pafs.S3FileSystem, out: str) -> pa.Table:
    """All rows of a run in the store."""
    return pq.read_table(f"{out.removeprefix('s3://')}/parts", filesystem=s3)


def names(s3: pafs.S3FileSystem, out: str) -> list[str]:
    return sorted(info.path for info in s3.get_file_info(pafs.FileSelector(out.removeprefix("s3://"), recursive=True)))


def test_a_run_in_a_store_has_the_rows_of_one_on_a_disk(
    warm: Cli, folder: Path, whole: pa.Table, s3: pafs.S3FileSystem, bucket: str
) -> None:
    out = f"{bucket}/first"
    command = ("run", folder, *DEMO, "--shard-size", 64, "--out", out)
    made = warm(*command)
    assert f"scores: {out}/parts/*.parquet" in made.stdout
    assert stored(s3, out).equals(whole)
    assert "200 rows in 4 parts" in warm("verify", out).stdout
    assert json.loads(warm("status", out, "--json").stdout)["complete"]
    before = {name: s3.get_file_info(name).mtime for name in names(s3, out) if name.endswith(".parquet")}
    assert "nothing was left to do" in warm(*command).stdout
    assert {name: s3.get_file_info(name).mtime for name in before} == before


def test_it_is_resumed_after_a_kill_and_shards_are_shared_by_ranks(
    warm: Cli, folder: Path, whole: pa.Table, s3: pafs.S3FileSystem, bucket: str
) -> None:
    out = f"{bucket}/killed"
    command = ("run", folder, *DEMO, "--shard-size", 32, "--out", out)
    process = start(*command)
    while not any("/parts/" in name for name in names(s3, bucket)):
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.communicate()
    for rank in (1, 0):
        warm(*command, "--rank", rank, "--world-size", 2)
    assert stored(s3, out).equals(whole)
    assert "200 rows in 7 parts" in warm("verify", out).stdout


def test_damage_is_found_and_repaired_and_other_settings_are_refused(
    warm: Cli, folder: Path, whole: pa.Table, s3: pafs.S3FileSystem, bucket: str
) -> None:
    out = f"{bucket}/damaged"
    command = ("run", folder, *DEMO, "--shard-size", 64, "--out", out)
    warm(*command)
    name = f"{out.removeprefix('s3://')}/parts/part-00002.parquet"
    with s3.open_input_file(name) as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    with s3.open_output_stream(name) as stream:
        stream.write(bytes(data))
    assert f"{out}/parts/part-00002.parquet: damaged" in warm("verify", out, code=5).stderr
    warm(*command, "--repair")
    assert stored(s3, out).equals(whole)
    assert "shard_size" in warm(*command[:-4], "--shard-size", 32, "--out", out, code=3).stderr
    warm(*command[:-4], "--shard-size", 128, "--out", out, "--overwrite")
    assert stored(s3, out).equals(whole)
    assert len([name for name in names(s3, out) if "/parts/part-" in name]) == 2


def test_what_cannot_be_written_is_said_in_one_line(cli: Cli, folder: Path, bucket: str, tmp_path: Path) -> None:
    command = ("run", folder, *DEMO, "--out")
    for out, env in (
        ("s3://no-such-bucket-here/out", {}),
        (f"{bucket}/out", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
        ("quark://bucket/out", {}),
    ):
        assert out in error_in(cli(*command, out, code=3, env=env).stderr)
