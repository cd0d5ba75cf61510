"""Files appear whole or not at all: exceptions, full disks, file-size limits, kills, and what dead writers leave."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.errors import InputError
from clipbatch.storage.atomic import publish, remove_leftovers, write_json

DYING = """
import os, signal, sys
from pathlib import Path
from clipbatch.storage.atomic import publish
with publish(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def _held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_appears_whole_when_the_block_ends_and_not_before(tmp_path: Path, before: bytes | None) -> None:
    target = tmp_path / "f"
    if before is not None:
        target.write_bytes(before)
    with publish(target) as file:
        file.write(b"new")
        file.flush()
        assert (target.read_bytes() if target.exists() else None) == before
        assert len(os.listdir(tmp_path)) == 1 + (before is not None)
    assert _held(tmp_path) == {"f": b"new"}


def _publish(target: Path, content: bytes | pa.Table, error: BaseException | None = None) -> None:
    """Publish bytes or a Parquet file; `error` comes in the midst of it."""
    with publish(target) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            pq.write_table(content, file)
        if error:
            raise error


@pytest.mark.parametrize("before", [{}, {"f": b"old"}])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_an_exception_in_the_block_leaves_everything_as_it_was(
    tmp_path: Path, before: dict[str, bytes], error: BaseException
) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(type(error)) as caught:
        _publish(tmp_path / "f", b"half", error)
    assert caught.value is error
    assert _held(tmp_path) == before


def test_a_killed_writer_leaves_no_file_and_a_leftover_that_the_next_run_removes(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", DYING, tmp_path / "f"])
    assert killed.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".f.")
    assert (tmp_path / left).read_bytes() == b"half"
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_writer_that_has_ended_and_that_nobody_has_waited_for_leaves_nothing_either(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", DYING, tmp_path / "f"])
    stat = Path(f"/proc/{killed.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert len(os.listdir(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    killed.wait()


def test_leftovers_of_the_living_of_other_hosts_and_all_other_files_are_kept(tmp_path: Path) -> None:
    with publish(tmp_path / "probe"):
        (temp,) = os.listdir(tmp_path)  # how a leftover of this process is called
    assert str(os.getpid()) in temp
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def of(pid: int) -> str:
        """Without the time when it began, as older versions wrote it."""
        return f"{temp.partition(f'-{os.getpid()}.')[0]}-{pid}.tmp"

    begun = temp.split(".")[-2]

    kept = {
        temp,
        temp.replace(f".{begun}.", ".0."),  # as where there is no /proc
        of(1),
        of(os.getppid()),
        "f",
        "part-00001.parquet",
        ".hidden",
        "a.tmp",
        ".x.tmp",
        f".x.h-{gone.pid}.tmp",
    }
    namesake = temp.replace(f".{begun}.", f".{int(begun) - 1}.")  # of another process that had this number before
    for name in {*kept, of(gone.pid), namesake}:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == kept | {"probe"}


def test_removing_leftovers_of_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "none")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["bytes", "parquet"])
@pytest.mark.parametrize("before", [{}, {"f": b"old"}])
def test_a_full_disk_is_refused_with_the_remedy_and_leaves_everything_as_it_was(
    small_disk: Path, kind: str, before: dict[str, bytes]
) -> None:
    for name, old in before.items():
        (small_disk / name).write_bytes(old)
    noise = os.urandom(2**17)
    content = noise if kind == "bytes" else pa.table({"noise": [noise[at : at + 8] for at in range(0, 2**17, 8)]})
    with pytest.raises(InputError, match="No space left on device; free some space there") as caught:
        _publish(small_disk / "f", content)
    assert (str(small_disk / "f") in str(caught.value), caught.value.exit_code) == (True, 3)
    assert _held(small_disk) == before
    _publish(small_disk / "f", noise[:40_000])  # the space that the failed one took is free again
    assert _held(small_disk) == {"f": noise[:40_000]}


def test_a_disk_that_is_full_to_the_last_byte_is_refused_when_nothing_can_be_begun(small_disk: Path) -> None:
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    with pytest.raises(InputError, match="No space left on device"):
        write_json(small_disk / "run.json", {"rows": 1})
    assert os.listdir(small_disk) == ["filler"]


LIMITED = """
import resource, sys
from pathlib import Path
from clipbatch.storage.atomic import publish
from clipbatch.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with publish(Path(sys.argv[1])) as file:
        file.write(b"x" * 10_000)
except InputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_file_size_limit_is_refused_with_the_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    limited = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / "f"], capture_output=True, text=True)
    assert (limited.returncode, limited.stderr) == (3, "")
    assert f"cannot write {tmp_path}/f: File too large; raise the file-size limit (ulimit -f)" in limited.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("none/f", "No such file or directory; the folder has gone"),
        ("file/f", "Not a directory; a file is in the way: choose another --out"),
        ("folder", "Is a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_and_left_alone(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        _publish(tmp_path / target, b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_json_is_published_with_sorted_keys_and_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "f", {"b": [1, None], "a": "日本"})
    text = (tmp_path / "f").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert list(json.loads(text).items()) == [("a", "日本"), ("b", [1, None])]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "f", {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": None, "d": "NaN", "e": True})
    content = json.loads((tmp_path / "f").read_bytes(), parse_constant=pytest.fail)
    assert content == {"a": [1.5, None, [None, {"b": None}]], "c": None, "d": "NaN", "e": True}
