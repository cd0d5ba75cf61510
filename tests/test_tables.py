"""Tables that hold the images themselves: the same answers as the same images as files, whatever the layout."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch import source
from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.read import table as read_table
from clipbatch.read.table import ReadTable
from clipbatch.types import Encoded, Reject, Span
from conftest import DEMO, Cli, rows, start
from corpus import make_folder

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
ROWS = 500
MEMORY = """
import os, resource, sys
import pyarrow
from clipbatch.read.table import ReadTable
from clipbatch.types import Encoded, Span
path, rows = sys.argv[1], int(sys.argv[2])
reader, size = ReadTable(2**30), os.path.getsize(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for row in range(rows):
    assert isinstance(reader(path, Span(start=row, length=size, method="column:image")), Encoded)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _payloads(count: int = ROWS, size: int = 3000) -> list[bytes]:
    dice = np.random.default_rng(1)
    return [dice.bytes(int(dice.integers(1, size))) for _ in range(count)]


def _images(data: list[bytes | None], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": range(len(data)), "image": pa.array(data, kind or pa.binary())})


def _stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)


def _packed(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=70)


LAYOUTS: dict[str, tuple[str, Callable[[pa.Table, Path], None]]] = {
    "one row group": (".parquet", lambda table, path: pq.write_table(table, path)),
    "small row groups": (".parquet", lambda table, path: pq.write_table(table, path, row_group_size=7)),
    "large pages": (".parquet", lambda t, path: pq.write_table(t, path, row_group_size=300, use_dictionary=False)),
    "plain": (".PARQUET", lambda table, path: pq.write_table(table, path, compression="none", write_batch_size=3)),
    "arrow file": (".arrow", lambda table, path: feather.write_feather(table, path, compression="uncompressed")),
    "arrow stream": (".arrow", _stream),
    "feather, lz4": (".feather", lambda table, path: feather.write_feather(table, path)),
    "arrow file, zstd": (".arrow", _packed),
}


def _write(tmp_path: Path, layout: str, table: pa.Table) -> Path:
    suffix, write = LAYOUTS[layout]
    write(table, tmp_path / f"t{suffix}")
    return tmp_path / f"t{suffix}"


def _read(reader: ReadTable, path: Path, row: int, column: str = "image") -> Encoded | Reject:
    return reader(str(path), Span(start=row, length=path.stat().st_size, method=f"column:{column}"))


def _bytes(found: Encoded | Reject) -> bytes:
    assert isinstance(found, Encoded), found
    return bytes(found.data)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_of_every_layout_in_any_order(tmp_path: Path, layout: str, kind: pa.DataType) -> None:
    data = _payloads()
    path, reader = _write(tmp_path, layout, _images(data, kind)), ReadTable(10**6)
    shuffled = random.Random(3).sample(range(ROWS), 60)
    for row in (*range(ROWS), *shuffled, *range(0, ROWS, 37), *reversed(range(0, ROWS, 50))):
        assert _bytes(_read(reader, path, row)) == data[row]


@pytest.mark.parametrize("waiting_bytes", [256 * 2**20, 20_000], ids=["room for all", "room for a few"])
@pytest.mark.parametrize("layout", ["one row group", "small row groups", "arrow stream"])
def test_threads_that_overtake_one_another_all_get_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, waiting_bytes: int
) -> None:
    monkeypatch.setattr(read_table, "_WAITING_BYTES", waiting_bytes)
    data = _payloads()
    path, reader = _write(tmp_path, layout, _images(data)), ReadTable(10**6)
    dice = random.Random(5)

    def batch(first: int) -> None:
        time.sleep(dice.random() / 50)
        for row in range(first, min(first + 16, ROWS)):
            assert _bytes(_read(reader, path, row)) == data[row]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(batch, range(0, ROWS, 16)))
    assert threading.active_count() < 8


def test_a_row_group_is_never_whole_in_memory(tmp_path: Path) -> None:
    image, path = np.random.default_rng(0).bytes(200_000), tmp_path / "t.parquet"
    schema, count = pa.schema({"image": pa.binary()}), 1500
    table = pa.table({"image": pa.array([image] * count, pa.binary())}, schema=schema)
    pq.write_table(table, path, use_dictionary=False, compression="none", write_batch_size=4, row_group_size=count)
    assert pq.read_metadata(path).num_row_groups == 1
    assert path.stat().st_size > 300 * 10**6
    command = [sys.executable, "-c", MEMORY, str(path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60 * 1024  # KiB; a fifth of the row group


def test_a_damaged_row_group_takes_nothing_else_with_it_and_one_that_nobody_asks_for_is_not_read(
    tmp_path: Path,
) -> None:
    data, path = _payloads(300), tmp_path / "t.parquet"
    table = _images(data)
    pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(1).column(1)
    whole = bytearray(path.read_bytes())
    whole[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes(40)
    path.write_bytes(whole)
    reader = ReadTable(10**6)
    for row in (250, 299, 10, 99):
        assert _bytes(_read(reader, path, row)) == data[row]
    found = [_read(reader, path, row) for row in range(300)]
    assert [one.status if isinstance(one, Reject) else "ok" for one in found] == [
        *["ok"] * 100, *["unreadable"] * 100, *["ok"] * 100
    ]  # fmt: skip
    (lister,) = source.listers(SourceSettings(inputs=(str(path),)))
    assert sum(batch.num_rows for batch in lister.batches()) == 300  # listing has not looked at the images


@pytest.mark.parametrize("layout", ["small row groups", "arrow stream", "feather, lz4"])
def test_what_a_row_without_an_image_is(tmp_path: Path, layout: str) -> None:
    path, reader = _write(tmp_path, layout, _images([None, b"", b"x" * 101, b"fine"])), ReadTable(100)
    found = [_read(reader, path, row) for row in range(4)]
    assert [one.status for one in found if isinstance(one, Reject)] == ["missing", "empty", "too_large"]
    assert _bytes(found[3]) == b"fine"
    beyond = _read(reader, path, 4)
    assert isinstance(beyond, Reject)
    assert (beyond.status, "no row 4" in beyond.error) == ("unreadable", True)


@pytest.mark.parametrize("layout", ["one row group", "arrow stream", "feather, lz4"])
def test_a_struct_without_bytes_names_a_file_beside_the_table(tmp_path: Path, layout: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jpg").write_bytes(b"beside")
    (tmp_path / "out.jpg").write_bytes(b"secret")
    values = [
        {"bytes": b"inside", "path": "gone.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": str(tmp_path / "in" / "b.jpg")},
        {"bytes": None, "path": "../out.jpg"},
        {"bytes": None, "path": "/etc/hostname"},
        {"bytes": None, "path": None},
        None,
    ]
    path, reader = _write(tmp_path / "in", layout, pa.table({"image": pa.array(values, STRUCT)})), ReadTable(100)
    found = [_read(reader, path, row) for row in range(len(values))]
    assert [_bytes(one) for one in found[:3]] == [b"inside", b"beside", b"beside"]
    rejects = [one for one in found[3:] if isinstance(one, Reject)]
    assert [one.status for one in rejects] == ["unreadable", "unreadable", "missing", "missing"]
    assert all("leads out of the table's folder" in one.error for one in rejects[:2])


def _listed(*inputs: object, **settings: Any) -> list[dict[str, Any]]:
    listers = source.listers(SourceSettings(inputs=tuple(map(str, inputs)), **settings))
    return pa.Table.from_batches(source.Listing(listers, None, ("label", "row_id")).batches()).to_pylist()


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_rows_are_named_by_their_file_and_number_and_carry_the_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write = pq.write_table if suffix == ".parquet" else feather.write_feather
    (tmp_path / "in").mkdir()
    for name in "ba":
        image = pa.array([{"bytes": name.encode(), "path": f"{name}.jpg"}, None], STRUCT)
        write(pa.table({"image": image, "label": [1, 2]}), tmp_path / "in" / f"{name}{suffix}")
    (tmp_path / "in" / "_SUCCESS").touch()
    monkeypatch.chdir(tmp_path)
    found = _listed("in")
    names = [f"in/{name}{suffix}" for name in "ab"]
    assert [row["uri"] for row in found] == [f"{name}#{row}" for name in names for row in range(2)]
    assert [row["input_label"] for row in found] == [1, 2, 1, 2]
    assert [row["image_path"] for row in found] == ["a.jpg", None, "b.jpg", None]
    assert [(row["root"], row["span"]["container"], row["span"]["start"]) for row in found] == [
        (str(tmp_path), name, row) for name in names for row in range(2)
    ]
    assert {row["span"]["method"] for row in found} == {"column:image"}
    assert [row["span"]["length"] for row in found[:2]] == [(tmp_path / names[0]).stat().st_size] * 2
    assert "input_label" not in _listed("in", columns=("image_path",))[0]


def test_the_uri_may_come_from_a_column(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"jpg": [b"x", b"y"], "url": ["https://h/1.jpg", None], "n": [1, 2]}), tmp_path / "t.parquet"
    )
    found = _listed(tmp_path / "t.parquet", image_column="jpg", uri_column="url")
    assert [(row["uri"], row["span"]["start"], row["n"]) for row in found] == [("https://h/1.jpg", 0, 1), ("", 1, 2)]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"jpg": [b"x"], "png": [b"y"]}, {}, "which column of .* holds the images.* jpg .binary., png .binary."),
        ({"photo": [b"x"], "n": [1]}, {}, "--image-column if one holds the images"),
        (
            {"photo": [b"x"]},
            {"image_column": "foto"},
            "no column 'foto' as --image-column names it.*Did you mean photo",
        ),
        ({"photo": ["x"]}, {"image_column": "photo"}, "'photo' of .* is string, no bytes"),
        ({"image": pa.array([], pa.binary())}, {}, "holds no images: it has columns, but no rows"),
    ],
)
def test_a_table_without_exactly_one_column_of_images_is_refused(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        _listed(tmp_path / "t.parquet", **settings)


def test_the_identity_is_the_place_the_size_and_the_footer(tmp_path: Path) -> None:
    def identity() -> str:
        return source.listers(SourceSettings(inputs=(str(tmp_path / "t.parquet"),)))[0].identity()

    found = set()
    for data in ([b"abc"], [b"abd"], [b"abc", None]):
        pq.write_table(_images(data), tmp_path / "t.parquet")
        found |= {identity(), identity()}
    assert len(found) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as files, good and bad, and as the rows of tables, in the order in which they are listed."""
    folder = tmp_path_factory.mktemp("tables")
    listed = make_folder(folder / "files", 160, seed=8, bad_fraction=0.2)
    data = [(folder / "files" / one.name).read_bytes() for one in listed]
    struct = pa.array([{"bytes": d, "path": one.name} for d, one in zip(data, listed, strict=True)], STRUCT)
    (folder / "tables").mkdir()
    pq.write_table(_images(data), folder / "tables" / "small.parquet", row_group_size=11)
    pq.write_table(_images(data).set_column(1, "image", struct), folder / "tables" / "struct.parquet")
    feather.write_feather(_images(data), folder / "tables" / "t.feather")
    _stream(_images(data, pa.large_binary()), folder / "tables" / "stream.arrow")
    return folder


@pytest.fixture(scope="module")
def whole(cli: Cli, folder: Path) -> Path:
    """A run over the tables, undisturbed."""
    cli("run", *sorted((folder / "tables").iterdir()), *DEMO, "--shard-size", 64, "--out", folder / "whole")
    return folder / "whole"


def test_images_in_tables_get_the_answers_of_the_same_images_as_files(cli: Cli, folder: Path, whole: Path) -> None:
    cli("run", folder / "files", *DEMO, "--shard-size", 64, "--out", folder / "files-out")
    expected, found = rows(folder / "files-out"), rows(whole)
    assert found.num_rows == 4 * expected.num_rows
    for number in range(4):
        table = found.slice(number * expected.num_rows, expected.num_rows)
        assert table["id"].to_pylist() == list(range(160))
        for name in ("status", "width", "height", "label"):
            assert table[name].to_pylist() == expected[name].to_pylist()
        scores = [np.array([row for row in t["scores"].to_pylist() if row]) for t in (table, expected)]
        np.testing.assert_allclose(scores[0], scores[1], atol=2e-2)  # another batch moves a score in its last digits
    cli("verify", whole)


def test_a_killed_run_over_tables_resumes_to_the_same_bytes(folder: Path, whole: Path, cli: Cli) -> None:
    out = folder / "killed"
    command = ("run", *sorted((folder / "tables").iterdir()), *DEMO, "--shard-size", 64, "--out", out)
    process = start(*command)
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for part in sorted((out / "parts").glob("*.parquet"))[1::2]:
        part.unlink()
    cli(*command)
    found, expected = ({p.name: p.read_bytes() for p in (run / "parts").glob("*.parquet")} for run in (out, whole))
    assert found == expected


def test_tables_that_are_cut_or_changed_or_gone_after_the_plan_become_rows_that_say_so(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    names = ["cut.parquet", "fine.parquet", "gone.parquet", "grown.parquet"]
    good = pq.read_table(folder / "tables" / "small.parquet").slice(0, 20)
    for name in names:
        pq.write_table(good, tmp_path / name)
    command = ("plan", *(tmp_path / name for name in names), *DEMO, "--shard-size", 32, "--out", tmp_path / "out")
    cli(*command)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-1000])
    (tmp_path / "gone.parquet").unlink()
    pq.write_table(pa.concat_tables([good, good]), tmp_path / "grown.parquet")
    cli("run", "--out", tmp_path / "out")
    found = rows(tmp_path / "out")["status"].to_pylist()
    assert [set(found[at : at + 20]) for at in (0, 40, 60)] == [{"truncated"}, {"missing"}, {"unreadable"}]
    assert "ok" in found[20:40]
    assert "the table has changed since it was listed" in rows(tmp_path / "out")["error"][79].as_py()
