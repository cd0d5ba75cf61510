"""Tables of images in stores and on the web: listed by footer, read by ranges, with the statuses of local tables."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch.config import ReadSettings
from clipbatch.errors import InputError
from clipbatch.stages.read import Read
from clipbatch.storage import ranges, stores
from clipbatch.types import Encoded, ItemBatch
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import photo
from tests.support.listing import STRUCT, image_table, write_stream
from tests.support.packing import item, listed, read
from tests.support.servers import Answer, Buckets, Handler, buckets, parts_of, status, web

COUNT = 60
DATA: list[bytes | None] = [np.random.default_rng(row).bytes(40_000) for row in range(COUNT)]
WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "groups.parquet": lambda table, path: pq.write_table(table, path, row_group_size=7, compression="none"),
    "one.parquet": lambda table, path: pq.write_table(table, path),
    "file.arrow": lambda table, path: feather.write_feather(table, path, compression="uncompressed"),
    "file.feather": lambda table, path: feather.write_feather(table, path),
    "stream.arrow": write_stream,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    folder = tmp_path_factory.mktemp("tables")
    with buckets() as store:
        store.put("tables")
        for name, write in WRITERS.items():
            write(image_table(DATA), folder / name)
            store.put(f"tables/all/{name}", (folder / name).read_bytes())
        for number in range(3):
            pq.write_table(image_table(DATA[number::3]), folder / "t.parquet", row_group_size=5)
            store.put(f"tables/train/{number}.parquet", (folder / "t.parquet").read_bytes())
        store.put("tables/train/_SUCCESS")
        store.put("tables/lists/a.csv", b"uri,year\nx.jpg,1999\n")
        store.put("tables/lists/b.csv", b"uri,year\ny.jpg,2001\n")
        yield store


def _hang_up(handler: Handler) -> None:
    handler.close_connection = True


def _statuses(found: list[dict[str, Any]], **settings: Any) -> list[str]:
    """The status of each row, read by the threads of a run."""
    items = tuple(item(row, number) for number, row in enumerate(found))
    stage = Read(ReadSettings(**{"read_retries": 1, **settings}))
    done = stage(ItemBatch(shard=0, start=0, items=items, rows=pa.table({}), last=True))
    return ["ok" if isinstance(slot, Encoded) else slot.status for slot in done.slots if slot is not None]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Parquet table of several blocks and several row groups with at least two pages each."""
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    pq.write_table(image_table(DATA), path, row_group_size=25, compression="none", use_dictionary=False)
    return path.read_bytes()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 100_000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_in_a_store_is_listed_and_read_in_place(here: Buckets, name: str) -> None:
    url = f"s3://tables/all/{name}"
    found, _ = listed(url)
    assert [row["uri"] for row in found] == [f"{url}#{number}" for number in range(COUNT)]
    assert [(row["id"], row["root"]) for row in found] == [(number, "s3://tables/all") for number in range(COUNT)]
    assert read(found) == DATA
    assert read(found[::-7]) == DATA[::-7]


def test_a_folder_and_a_pattern_of_a_store_are_tables(here: Buckets) -> None:
    expected = [(f"s3://tables/train/{n}.parquet#{row}", DATA[n::3][row]) for n in range(3) for row in range(20)]
    for text in (
        "s3://tables/train/",
        "s3://tables/train",
        "s3://tables/tra*/*.parquet",
        "s3://tables/**/[0-2].parquet",
    ):
        if "[" in text:  # a character of keys like any other
            with pytest.raises(InputError, match="nothing matches the pattern"):
                listed(text)
            continue
        found, _ = listed(text)
        assert list(zip([row["uri"] for row in found], read(found), strict=True)) == expected
    found, _ = listed("s3://tables/lists/")
    assert [(row["uri"], row["root"], row["year"]) for row in found] == [
        ("x.jpg", "s3://tables/lists", 1999),
        ("y.jpg", "s3://tables/lists", 2001),
    ]
    assert len(listed("s3://tables/train/", all_files=True)[0]) == 4
    with pytest.raises(InputError, match="tables of several kinds"):
        listed("s3://tables/all/")
    with pytest.raises(InputError, match=r"nothing matches the pattern 's3://tables/none/\*.parquet'"):
        listed("s3://tables/none/*.parquet")


def test_listing_reads_footers_and_other_columns_and_reading_a_row_reads_no_whole_file(table: bytes) -> None:
    asked: list[int] = []
    with web() as server:
        server.answers["/t.parquet"] = parts_of(table, asked)
        found, _ = listed(f"{server.root}/t.parquet")
        assert len(found) == COUNT
        assert sum(asked) < len(table) / 5
        asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranges, "BLOCK_BYTES", 100_000)
            assert read(found[-1:]) == DATA[-1:]
        assert sum(asked) < len(table) / 2


@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_requested_ahead_and_each_only_once(table: bytes) -> None:
    asked: list[int] = []
    with web() as server:
        server.answers["/t.parquet"] = parts_of(table, asked)
        file = ranges.ReadAhead(f"{server.root}/t.parquet")
        try:
            assert file.read(150_000) == table[:150_000]
            assert file.read() == table[150_000:]
            assert sum(asked) == len(table) + 1  # one byte to learn the size
            asked.clear()
            file.seek(-10, 2)
            assert (file.read(), file.read()) == (table[-10:], b"")
            assert asked == []
            file.seek(1_000_000)
            assert file.read(5) == table[1_000_000:1_000_005]
            assert asked == [100_000]
        finally:
            file.close()


def test_rows_without_an_image_and_rows_that_name_a_file_beside_the_table(here: Buckets, tmp_path: Path) -> None:
    values = [
        {"bytes": b"inside", "path": "gone.jpg"},
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": "../out.jpg"},
        {"bytes": None, "path": "s3://tables/out.jpg"},
        {"bytes": None, "path": "/etc/hostname"},
        {"bytes": b"", "path": None},
        None,
    ]
    pq.write_table(pa.table({"image": pa.array(values, STRUCT)}), tmp_path / "t.parquet")
    here.put("tables/struct/t.parquet", (tmp_path / "t.parquet").read_bytes())
    here.put("tables/struct/beside.jpg", b"beside")
    here.put("tables/out.jpg", b"secret")
    found, _ = listed("s3://tables/struct/t.parquet")
    told = read(found)
    assert told[:2] == [b"inside", b"beside"]
    assert [str(one).partition(":")[0] for one in told[2:]] == ["missing", *["unreadable"] * 3, "empty", "missing"]
    assert all("leads out of the table's folder" in str(one) for one in told[3:6])


def test_a_table_that_was_changed_or_removed_gives_rows_with_that_error(here: Buckets) -> None:
    found = {}
    for name, size in (("grown", 30), ("shrunk", 10), ("gone", 0)):
        file, path = stores.open_store(f"s3://tables/{name}.parquet")
        pq.write_table(image_table(DATA[:20]), path, filesystem=file)
        found[name], _ = listed(f"s3://tables/{name}.parquet")
        if size:
            pq.write_table(image_table(DATA[:size]), path, filesystem=file)
        else:
            file.delete_file(path)
    assert set(_statuses(found["grown"])) == {"unreadable"}
    assert set(_statuses(found["shrunk"])) == {"truncated"}
    assert set(_statuses(found["gone"])) == {"missing"}
    assert re.search("changed since it was listed: it has .* bytes and had", str(read(found["grown"][:1])))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("trouble", "outcome"),
    [
        (status(503), "ok"),
        (_hang_up, "ok"),
        (lambda handler: handler.server.over.wait(), "timeout"),
        (status(403), "unreadable"),
        (status(404), "missing"),
    ],
    ids=["busy", "hangs up", "stalls", "forbidden", "gone"],
)
def test_a_failing_server_costs_only_the_rows_that_it_does_not_serve(
    table: bytes, trouble: Answer, outcome: str
) -> None:
    good, asked = parts_of(table), 0

    def answer(handler: Handler) -> None:
        nonlocal asked
        asked += 1
        bad = asked == 5 if outcome == "ok" else asked > 4
        (trouble if bad else good)(handler)

    with web() as server:
        server.answers |= {"/t.parquet": good, "/fine.parquet": good}
        found, _ = listed(f"{server.root}/t.parquet")
        fine, _ = listed(f"{server.root}/fine.parquet")
        server.answers["/t.parquet"] = answer
        assert outcome in _statuses(found, read_timeout=2.0 if outcome == "timeout" else 30.0)
        if outcome == "ok":
            asked = 0
            assert set(_statuses(found)) == {"ok"}
        assert set(_statuses(fine)) == {"ok"}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (status(404), "the server says 404 Not Found"),
        (parts_of(b"no parquet at all, but long enough for its end"), "magic bytes not found"),
    ],
)
def test_a_table_that_cannot_be_listed_is_refused_in_one_line(answer: Answer, error: str) -> None:
    with web() as server:
        server.answers["/t.parquet"] = answer
        with pytest.raises(InputError, match=error) as caught:
            listed(f"{server.root}/t.parquet", image_column="image")
    assert "\n" not in str(caught.value)
    assert f"{server.root}/t.parquet" in str(caught.value)


def test_a_server_without_range_requests_is_refused(table: bytes) -> None:
    with web() as server:
        server.answers["/t.parquet"] = lambda handler: (handler.head(Content_Length=len(table)), handler.send(table))[0]
        with pytest.raises(InputError, match="gives no parts of it"):
            listed(f"{server.root}/t.parquet", image_column="image")


def test_a_run_over_tables_in_a_store_gives_what_local_ones_give(warm: Cli, store: Buckets, tmp_path: Path) -> None:
    rng, images = np.random.default_rng(5), []
    for _ in range(24):
        photo(rng, 90, 70).save(tmp_path / "x.png")
        images.append((tmp_path / "x.png").read_bytes())
    (tmp_path / "in").mkdir()
    for number in range(2):
        path = tmp_path / "in" / f"{number}.parquet"
        pq.write_table(image_table([*images[number::2], None, b"broken"]), path, row_group_size=5)
        store.put(f"tables/run/{number}.parquet", path.read_bytes())
    for text, out in ((tmp_path / "in", "local"), ("s3://tables/run/*.parquet", "remote")):
        made = warm("run", text, *DEMO, "--out", tmp_path / out, env=store.env)
        assert "28 images: 24 ok" in made.stdout
    local, remote = (rows(tmp_path / out).drop_columns("uri") for out in ("local", "remote"))
    assert local.equals(remote)
    warm("plan", "s3://tables/run/*.parquet", *DEMO, "--out", tmp_path / "remote", env=store.env)  # the same run again
