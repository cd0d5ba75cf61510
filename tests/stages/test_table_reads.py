"""Reading rows out of tables: every layout, many threads, bounded memory, and what is not there."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch.config import SourceSettings
from clipbatch.inputs import listing
from clipbatch.stages.read import table as read_table
from clipbatch.stages.read.table import ReadTable
from clipbatch.types import Encoded, Reject, Span
from tests.support.listing import STRUCT, image_table, write_stream

ROWS = 500
MEMORY = """
import os, resource, sys
import pyarrow
from clipbatch.stages.read.table import ReadTable
from clipbatch.types import Encoded
from clipbatch.types import Span
path, rows = sys.argv[1], int(sys.argv[2])
reader, size = ReadTable(2**30), os.path.getsize(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for row in range(rows):
    assert isinstance(reader(path, Span(start=row, length=size, method="column:image"), 60.0), Encoded)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _payloads(count: int = ROWS, size: int = 3000) -> list[bytes]:
    dice = np.random.default_rng(1)
    return [dice.bytes(int(dice.integers(1, size))) for _ in range(count)]


def _packed(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=70)


LAYOUTS: dict[str, tuple[str, Callable[[pa.Table, Path], None]]] = {
    "one row group": (".parquet", lambda table, path: pq.write_table(table, path)),
    "small row groups": (".parquet", lambda table, path: pq.write_table(table, path, row_group_size=7)),
    "large pages": (".parquet", lambda t, path: pq.write_table(t, path, row_group_size=300, use_dictionary=False)),
    "plain": (".PARQUET", lambda table, path: pq.write_table(table, path, compression="none", write_batch_size=3)),
    "arrow file": (".arrow", lambda table, path: feather.write_feather(table, path, compression="uncompressed")),
    "arrow stream": (".arrow", write_stream),
    "feather, lz4": (".feather", lambda table, path: feather.write_feather(table, path)),
    "arrow file, zstd": (".arrow", _packed),
}


def _write(tmp_path: Path, layout: str, table: pa.Table) -> Path:
    suffix, write = LAYOUTS[layout]
    write(table, tmp_path / f"t{suffix}")
    return tmp_path / f"t{suffix}"


def _read(reader: ReadTable, path: Path, row: int, column: str = "image") -> Encoded | Reject:
    return reader(str(path), Span(start=row, length=path.stat().st_size, method=f"column:{column}"), 60.0)


def _bytes(found: Encoded | Reject) -> bytes:
    assert isinstance(found, Encoded), found
    return bytes(found.data)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_of_every_layout_in_any_order(tmp_path: Path, layout: str, kind: pa.DataType) -> None:
    data = _payloads()
    path, reader = _write(tmp_path, layout, image_table(data, kind)), ReadTable(10**6)
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
    path, reader = _write(tmp_path, layout, image_table(data)), ReadTable(10**6)
    dice, threads = random.Random(5), threading.active_count()

    def batch(first: int) -> None:
        time.sleep(dice.random() / 50)
        for row in range(first, min(first + 16, ROWS)):
            assert _bytes(_read(reader, path, row)) == data[row]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(batch, range(0, ROWS, 16)))
    assert threading.active_count() <= threads


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
    table = image_table(data)
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
    (lister,) = listing.listers(SourceSettings(inputs=(str(path),)))
    assert sum(batch.num_rows for batch in lister.batches()) == 300  # listing has not looked at the images


@pytest.mark.parametrize("layout", ["small row groups", "arrow stream", "feather, lz4"])
def test_what_a_row_without_an_image_is(tmp_path: Path, layout: str) -> None:
    path, reader = _write(tmp_path, layout, image_table([None, b"", b"x" * 101, b"fine"])), ReadTable(100)
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
