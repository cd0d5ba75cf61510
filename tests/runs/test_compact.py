"""`clipbatch compact`: the same rows in the same order, verified, and nothing else in the folder."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from clipbatch.errors import DamagedError, InputError
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.part_file import PartFile
from clipbatch.runs import copying, flat
from clipbatch.runs import run as api
from tests.conftest import Cli, rows
from tests.support.corpus import make_folder

FILES, SHARD = 150, 16
PARTS = -(-FILES // SHARD)
GROUPS = '[groups.a]\nlabels = ["cat", "dog"]\nthreshold = 0.8\n[groups.b]\nlabels = ["ship", "bird", "a truck"]\n'


@pytest.fixture(scope="module")
def run(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten parts with two groups and embeddings."""
    folder = tmp_path_factory.mktemp("compact")
    make_folder(folder / "in", FILES, seed=31, bad_fraction=0.2)
    (folder / "g.toml").write_text(GROUPS)
    command = ("run", folder / "in", "--labels", folder / "g.toml", "--model", "clipbatch-demo")
    warm(*command, "--shard-size", SHARD, "--embeddings", "--out", folder / "run")
    return folder / "run"


def _plain(table: pa.Table) -> list[dict[str, object]]:
    found: list[dict[str, object]] = table.to_pylist()
    return found


@pytest.mark.parametrize(("rows_per_file", "files"), [(None, 1), (1, PARTS), (64, 3), (63, 4), (10**9, 1)])
def test_rows_and_their_order_are_unchanged_for_every_number_of_files(
    run: Path, tmp_path: Path, rows_per_file: int | None, files: int
) -> None:
    made = api.compact(run, tmp_path / "out", rows_per_file=rows_per_file, flat=True)
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"part-{n:05d}-of-{files:05d}.parquet" for n in range(files)]
    assert made == {
        "rows": FILES,
        "parts": PARTS,
        "files": files,
        "out": str(tmp_path / "out"),
        "source_may_be_deleted": False,
    }
    together = pa.concat_tables([pq.read_table(path) for path in paths])
    assert together.schema.equals(rows(run).schema, check_metadata=False)
    assert _plain(together) == _plain(rows(run))
    assert all(verify_file(path.read_bytes()) for path in paths)


def test_the_footer_says_what_the_file_is(run: Path, tmp_path: Path) -> None:
    api.compact(run, tmp_path / "out", rows_per_file=64, flat=True)
    part = pq.read_schema(run / "parts" / "part-00000.parquet").metadata
    found = [pq.read_metadata(path).metadata for path in sorted((tmp_path / "out").iterdir())]
    assert [footer[b"clipbatch.shards"] for footer in found] == [b"0-3", b"4-7", b"8-9"]
    assert [footer[b"clipbatch.file"] for footer in found] == [b"0 of 3", b"1 of 3", b"2 of 3"]
    for name in (b"clipbatch.labels", b"clipbatch.fingerprint", b"clipbatch.threshold", b"clipbatch.model"):
        assert {footer[name] for footer in found} == {part[name]}
    assert sum(sum(json.loads(footer[b"clipbatch.counts"]).values()) for footer in found) == FILES
    assert not any(b"clipbatch.shard" in footer for footer in found)


def test_row_groups_have_the_size_that_readers_want(run: Path, tmp_path: Path) -> None:
    assert {pq.read_metadata(part).num_row_groups for part in (run / "parts").iterdir()} == {1}
    api.compact(run, tmp_path / "one", flat=True)
    (path,) = (tmp_path / "one").iterdir()
    assert pq.read_metadata(path).num_row_groups == 1
    flat.compact(RunDir(run), tmp_path / "several", None, row_group_rows=40)
    (path,) = (tmp_path / "several").iterdir()
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [40, 40, 40, 30]
    assert _plain(pq.read_table(path)) == _plain(rows(run))


def test_the_same_command_again_makes_only_what_is_missing_or_damaged(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.compact(run, out, rows_per_file=64, flat=True)
    first, second, third = sorted(out.iterdir())
    whole, stamp = {path: path.read_bytes() for path in (first, second, third)}, first.stat().st_mtime_ns
    second.unlink()
    third.write_bytes(whole[third][:-50])
    (out / f".{second.name}.{'nobody'}-1.tmp").touch()  # of a writer on another host
    api.compact(run, out, rows_per_file=64, flat=True)
    assert {path: path.read_bytes() for path in (first, second, third)} == whole
    assert first.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("what", ["stranger", "other cut", "other run", "file"])
def test_a_folder_with_other_files_is_refused_and_left_alone(run: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if what == "stranger":
        (out / "notes.txt").touch()
    elif what == "other cut":
        api.compact(run, out, rows_per_file=32, flat=True)
    elif what == "other run":
        table = pq.read_table(run / "parts" / "part-00000.parquet")
        pq.write_table(
            table.replace_schema_metadata({"clipbatch.fingerprint": "f"}), out / "part-00000-of-00003.parquet"
        )
    else:
        out.rmdir()
        out.touch()
    before = sorted(out.iterdir()) if out.is_dir() else []
    said = {
        "stranger": "holds other files .*'notes.txt'",
        "other cut": "holds other files .*begun with another --rows-per-file",
        "other run": "belongs to another run: choose a new or empty folder",
        "file": "cannot write .*a file is in the way",
    }[what]
    with pytest.raises(InputError, match=said):
        api.compact(run, out, rows_per_file=64, flat=True)
    assert (sorted(out.iterdir()) if out.is_dir() else []) == before


@pytest.mark.parametrize("damage", ["flipped", "gone", "no run"])
def test_an_unfinished_or_damaged_run_is_refused(warm: Cli, run: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    part = copy / "parts" / "part-00005.parquet"
    command = ("compact", copy, "--out", tmp_path / "out", "--rows-per-file", 64, "--flat")
    if damage == "flipped":
        data = bytearray(part.read_bytes())
        data[200] ^= 8
        part.write_bytes(data)
        error = warm(*command, code=5).stderr
        assert str(part) in error
        assert f"clipbatch run --out {copy} --repair" in error
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-00000-of-00003.parquet"]
    elif damage == "gone":
        part.unlink()
        assert f"is not finished ({PARTS - 1} of {PARTS} parts)" in warm(*command, code=3).stderr
        assert not (tmp_path / "out").exists()
    else:
        assert "is not a run directory" in warm("compact", tmp_path, "--out", tmp_path / "out", code=3).stderr


@pytest.mark.parametrize(
    ("order", "said"),
    [([1, 0, *range(2, FILES)], "are not those of the parts"), ([*range(FILES), 0], "more rows are read back")],
    ids=["swapped", "one too many"],
)
def test_a_file_with_other_rows_than_the_parts_is_never_published(
    run: Path, tmp_path: Path, order: list[int], said: str
) -> None:
    source, target = RunDir(run), tmp_path / "part-00000-of-00001.parquet"
    table, plan = pq.read_table(run / "parts").take(pa.array(order)), source.plan()

    def write() -> None:
        with PartFile(target, table.schema, "zstd") as file:
            file.write(table)
            file.close(
                {}, check=lambda copy: copying.check_copy(copy, copying.tables_of(source, plan, range(PARTS)), target)
            )

    with pytest.raises(DamagedError, match=said):
        write()
    assert list(tmp_path.iterdir()) == []


def test_files_go_into_a_store_and_are_verified_there(warm: Cli, run: Path, s3: pafs.S3FileSystem, bucket: str) -> None:
    out = f"{bucket}/compact"
    for _ in range(2):
        assert (
            json.loads(warm("compact", run, "--out", out, "--rows-per-file", 64, "--flat", "--json").stdout)["files"]
            == 3
        )
    paths = sorted(info.path for info in s3.get_file_info(pafs.FileSelector(out.removeprefix("s3://"))))
    assert len(paths) == 3
    found = [s3.open_input_file(path).read() for path in paths]
    assert all(verify_file(data) for data in found)
    together = pa.concat_tables([pq.read_table(pa.BufferReader(data)) for data in found])
    assert _plain(together) == _plain(rows(run))


def test_rows_that_were_done_again_are_copied_again(warm: Cli, tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 12, seed=1, bad_fraction=0)
    name = sorted((tmp_path / "in").rglob("*.jpg"))[0]
    data = name.read_bytes()
    name.write_bytes(b"")
    warm("run", tmp_path / "in", "--labels", "cat,dog", "--model", "clipbatch-demo", "--out", tmp_path / "run")
    api.compact(tmp_path / "run", tmp_path / "out", flat=True)
    name.write_bytes(data)
    warm("run", "--out", tmp_path / "run", "--retry-bad")
    api.compact(tmp_path / "run", tmp_path / "out", flat=True)
    (path,) = (tmp_path / "out").iterdir()
    assert set(pq.read_table(path)["status"].to_pylist()) == {"ok"}
