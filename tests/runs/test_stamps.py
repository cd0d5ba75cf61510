"""Files with times before 1677 or after 2262: they are labelled once, and again when they change."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import DEMO, Cli
from tests.support.history import Version, encoded, rows_of, set_time, shape
from tests.support.listing import list_inputs, write

INCREMENT = ("--incremental", "--out")
YEAR_2300, YEAR_1601 = 10_413_792_000 * 10**9, -11_644_473_600 * 10**9


def put(path: Path, content: int, time_ns: int) -> None:
    path.write_bytes(encoded(Version(content=content, time_ns=0)))
    set_time(path, time_ns)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where times of all centuries can be kept; `tmp_path` on machines without."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("time_ns", [YEAR_2300, YEAR_1601])
def test_a_file_with_an_odd_time_is_labelled_once_and_again_when_it_changes(
    warm: Cli, memory: Path, tmp_path: Path, time_ns: int
) -> None:
    images = memory / "in"
    images.mkdir()
    odd = images / "odd.jpg"
    put(odd, 1, time_ns)
    if odd.stat().st_mtime_ns != time_ns:
        pytest.skip(f"{memory} holds no time of {time_ns} ns")
    put(images / "usual.jpg", 2, 1_600_000_000 * 10**9)
    command = ("run", images, *DEMO, *INCREMENT, tmp_path / "dataset")
    note = "files whose time is before 1677 or after 2262, so that their contents are compared: 1, the first is "
    note += repr(str(odd))
    said = warm(*command).stdout
    assert "2 new images" in said
    assert said.count(note) == 1
    stamps = {Path(row["uri"]).name: row for row in rows_of(tmp_path / "dataset" / "increment-00001")}
    assert stamps["odd.jpg"]["file_modified"] is None
    assert stamps["odd.jpg"]["file_bytes"] == odd.stat().st_size
    assert stamps["usual.jpg"]["file_sha256"] is None
    (line,) = warm(*command, "--one-line").stdout.splitlines()
    assert line == f"{tmp_path / 'dataset'}: nothing new, 2 images known; {note}"
    put(odd, 3, time_ns)
    assert "0 new images, 1 changed, 1 known" in warm(*command).stdout
    (row,) = rows_of(tmp_path / "dataset" / "increment-00002")
    assert (row["width"], row["height"]) == shape(3)
    set_time(odd, time_ns + 10**9)
    assert "nothing is new or changed" in warm(*command).stdout
    set_time(odd, time.time_ns())
    assert "0 new images, 1 changed, 1 known" in warm(*command).stdout
    assert "nothing is new or changed" in warm(*command).stdout


def test_ordinary_times_are_stored_to_the_microsecond(warm: Cli, memory: Path, tmp_path: Path) -> None:
    images = memory / "in"
    images.mkdir()
    times = {"last.jpg": 2**63 - 1, "first.jpg": 1 - 2**63, "before.jpg": -1, "zero.jpg": 0}
    for number, (name, time_ns) in enumerate(times.items(), 1):
        put(images / name, number, time_ns)
    times = {name: (images / name).stat().st_mtime_ns for name in times}
    command = ("run", images, *DEMO, *INCREMENT, tmp_path / "dataset")
    assert "files whose time" not in warm(*command).stdout
    (part,) = (tmp_path / "dataset" / "increment-00001" / "parts").iterdir()
    table = pq.read_table(part)
    assert table.schema.field("file_modified").type == pa.timestamp("us", "UTC")
    kept = table["file_modified"].cast(pa.int64()).to_pylist()
    expected = {name: time_ns // 1000 for name, time_ns in times.items()}
    assert dict(zip((Path(uri).name for uri in table["uri"].to_pylist()), kept, strict=True)) == expected
    assert "nothing is new or changed: 4 images are known" in warm(*command).stdout


def test_a_named_pipe_among_the_images_blocks_nothing(warm: Cli, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    put(images / "a.jpg", 1, 0)
    os.mkfifo(images / "pipe.jpg")
    set_time(images / "pipe.jpg", YEAR_2300)
    for more in ((), ("--hash-contents",)):
        out = tmp_path / f"dataset-{len(more)}"
        command = ("run", images, *DEMO, *more, *INCREMENT, out)
        assert "2 images: 1 ok, 1 unreadable" in warm(*command).stdout
        assert "nothing is new or changed: 2 images are known" in warm(*command).stdout


def test_dates_that_a_column_cannot_hold_are_refused_with_its_name(warm: Cli, tmp_path: Path) -> None:
    exact = write(tmp_path / "exact.csv", "uri,taken\na.jpg,2020-01-01T00:00:00.5\n")
    far = write(tmp_path / "far.csv", "uri,taken\nb.jpg,2300-01-01T00:00:00\n")
    listed = list_inputs(exact, far)
    assert listed.schema.field("taken").type == pa.timestamp("us")
    assert [when.year for when in listed["taken"].to_pylist()] == [2020, 2300]
    table = pa.table({"uri": ["a.jpg"], "taken": pa.array([2**62], pa.timestamp("s"))})
    with pa.ipc.new_file(str(tmp_path / "far.arrow"), table.schema) as file:
        file.write_table(table)
    command = ("plan", tmp_path / "far.arrow", "--uri-column", "uri", *DEMO, "--out", tmp_path / "out")
    said = f"row 0 (from 0) of {tmp_path / 'far.arrow'} has a timestamp[s] out of range"
    assert said in warm(*command, code=3).stderr
    assert not (tmp_path / "out").exists()
