"""`clipbatch compact`: the same rows in the same order, verified, as a run directory or as plain files."""

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
from tests.conftest import DEMO, Cli, rows
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


def test_nan_in_a_carried_column_is_copied_as_it_is(warm: Cli, tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 4, seed=2, bad_fraction=0)
    nan = float("nan")
    table = pa.table(
        {
            "image": sorted(str(path) for path in (tmp_path / "in").rglob("*.*")),
            "price": pa.array([1.5, nan, None, -0.0]),
            "sizes": pa.array([[nan, 1], None, [], [2, nan]], pa.list_(pa.float32())),
            "more": [{"weight": nan, "name": "a"}, None, {"weight": None, "name": None}, {"weight": 2.0, "name": "b"}],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    warm("run", tmp_path / "list.parquet", *DEMO, "--out", tmp_path / "run")
    warm("compact", tmp_path / "run", "--out", tmp_path / "few")
    copied = rows(tmp_path / "few")
    for name in table.column_names[1:]:
        assert repr(copied[name].to_pylist()) == repr(table[name].to_pylist())


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


def test_a_compacted_run_is_a_run_with_larger_shards(warm: Cli, run: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(run, source)
    command = ("compact", source, "--out", out, "--rows-per-file", 64)
    said = warm(*command).stdout
    assert f"all rows of {source} are in {out}, compared and verified: {source} may be deleted" in said
    before, after = RunDir(run).plan(), RunDir(out).plan()
    assert (after.shard_size, after.shards) == (64, 3)
    assert after.identity == before.identity | {"shard_size": 64}
    names = [f"part-{number:05d}.parquet" for number in range(3)]
    assert sorted(path.name for path in (out / "parts").iterdir()) == names
    assert _plain(rows(out)) == _plain(rows(run))
    manifests = (pq.read_table(folder / "manifest").to_pylist() for folder in (out, run))
    assert next(manifests) == next(manifests)
    shutil.rmtree(source)
    warm("verify", out)
    status = json.loads(warm("status", out, "--json").stdout)
    assert (status["complete"], status["rows"], status["parts"]) == (True, FILES, 3)
    warm("report", out, "--examples", 1)
    page = (out / "report.html").read_text()
    assert f"{FILES} images" in page
    report, before_it = (json.loads((folder / "report.json").read_text()) for folder in (out, run))
    assert report["parts"] == {"done": 3, "planned": 3}
    assert report["this_run"] == before_it["this_run"]
    assert "nothing was left to do" in warm("run", "--out", out).stdout
    warm("rescore", out, "--labels", "cat,dog", "--out", tmp_path / "again")
    warm("rescore", run, "--labels", "cat,dog", "--out", tmp_path / "expected")
    assert _plain(rows(tmp_path / "again")) == _plain(rows(tmp_path / "expected"))


def test_a_part_of_a_compacted_run_is_made_again_from_the_images_with_the_same_scores(
    warm: Cli, run: Path, tmp_path: Path
) -> None:
    for source, kept in ((run, "run"), (tmp_path / "scored", "scored")):
        if kept == "scored":
            warm("rescore", run, "--labels", "cat,dog", "--out", source)
        out = tmp_path / f"few-{kept}"
        warm("compact", source, "--out", out, "--rows-per-file", 64)
        (out / "parts" / "part-00001.parquet").unlink()
        warm("run", "--out", out, "--repair")
        warm("verify", out)
        assert _plain(rows(out)) == _plain(rows(source))


def test_compacting_again_makes_only_what_is_missing_and_never_replaces_another_run(
    warm: Cli, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("compact", run, "--out", out, "--rows-per-file", 64)
    warm(*command)
    parts = sorted((out / "parts").iterdir())
    whole, stamp = {path: path.read_bytes() for path in parts}, parts[0].stat().st_mtime_ns
    parts[1].unlink()
    parts[2].write_bytes(whole[parts[2]][:-50])
    warm(*command)
    assert {path: path.read_bytes() for path in parts} == whole
    assert parts[0].stat().st_mtime_ns == stamp
    assert "shard_size is 32 now and 64 there" in warm(*command[:-1], 32, code=3).stderr
    assert "is the run that is compacted" in warm("compact", run, "--out", run, code=3).stderr
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    assert "holds other files ('notes.txt'" in warm("compact", run, "--out", tmp_path / "notes", code=3).stderr
    table = pq.read_table(parts[0])
    footer = {key: value for key, value in table.schema.metadata.items() if key != b"clipbatch.counts"}
    better = table.set_column(2, "status", pa.array(["ok"] * len(table)).dictionary_encode())
    with PartFile(parts[0], better.schema.with_metadata(footer), "zstd") as file:
        file.write(better.cast(better.schema))
        file.close({"clipbatch.counts": json.dumps({"ok": len(table)})})
    assert f"{parts[0]} stays: its footer counts 64 ok" in warm(*command, code=3).stderr
    assert {path: path.read_bytes() for path in parts[1:]} == {path: whole[path] for path in parts[1:]}


def test_a_run_goes_into_a_store_as_a_run(warm: Cli, run: Path, bucket: str) -> None:
    out = f"{bucket}/compact"
    for _ in range(2):
        said = json.loads(warm("compact", run, "--out", out, "--rows-per-file", 64, "--json").stdout)
        assert (said["files"], said["source_may_be_deleted"]) == (3, True)
    warm("verify", out)
