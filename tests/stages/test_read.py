"""Reading files that are fine, missing, odd, forbidden, lying or hanging: bytes or a reason, never a stuck batch."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipbatch.config import ReadSettings
from clipbatch.stages.read import Read
from clipbatch.types import Encoded, Item, ItemBatch, ReadBatch, Reject

Hold = Callable[..., "subprocess.Popen[str]"]
LEASES = """
import fcntl, os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
fds = [os.open(path, os.O_RDWR) for path in sys.argv[2:]]
try:
    for fd in fds:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError as error:
    sys.exit(f"no leases here: {error}")
print("held", flush=True)
while True:
    signal.sigwait({signal.SIGIO})  # somebody opens one of the files, and waits
    time.sleep(float(sys.argv[1]))
    for fd in fds:
        if fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Make open(2) of files wait in the kernel: `hold(seconds, *paths)`, by write leases that a process holds on them.

    They end with that process; else the kernel takes them away after /proc/sys/fs/lease-break-time, 45 s.
    """
    holders: list[subprocess.Popen[str]] = []

    def start(seconds: float, *paths: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", LEASES, str(seconds), *map(str, paths)]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout
        if holder.stdout.readline() != "held\n":
            pytest.skip(holder.communicate()[1])
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def _still_hangs(path: Path) -> bool:
    """Whether somebody who opens `path` is kept waiting for a lease at this moment."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("BREAKING" in line and f":{path.stat().st_ino} " in line for line in lines)


def _batch(*paths: object) -> ItemBatch:
    """A batch of `paths`; None for a slot that is not wanted."""
    items = [None if p is None else Item(row_id=n, uri=f"uri-{n}", path=str(p)) for n, p in enumerate(paths)]
    return ItemBatch(shard=0, start=0, items=tuple(items), rows=pa.table({}), last=True)


def _told(batch: ReadBatch) -> list[Any]:
    """Each slot as its bytes, its status, or None."""
    return [bytes(s.data) if isinstance(s, Encoded) else s.status if isinstance(s, Reject) else s for s in batch.slots]


def _read(*paths: object, **settings: Any) -> list[Any]:
    return _told(Read(ReadSettings(**{"read_timeout": 30.0, **settings}))(_batch(*paths)))


def _one(path: object, **settings: Any) -> Reject:
    (slot,) = Read(ReadSettings(**{"read_timeout": 30.0, **settings}))(_batch(path)).slots
    assert isinstance(slot, Reject)
    return slot


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Ten files whose content is their number."""
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    return sorted(tmp_path.iterdir())


def test_every_file_comes_with_its_own_bytes_in_its_slot(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "large").write_bytes(large := os.urandom(5_000_001))
    batch = _batch(files[3], None, files[1], tmp_path / "none", tmp_path / "large", None, files[1])
    done = Read(ReadSettings())(batch)
    assert done.source is batch
    assert _told(done) == [b"3", None, b"1", "missing", large, None, b"1"]
    assert _read() == []
    assert _read(None, None) == [None, None]


@pytest.mark.parametrize("name", [b"caf\xe9\xff.jpg", "line\nbreak 🐝.jpg".encode(), b"a" * 255, b" ", b"-"])
def test_a_file_of_any_name_is_read(tmp_path: Path, name: bytes) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    Path(path).write_bytes(b"x")
    os.symlink(path, tmp_path / "link")
    assert _read(path, tmp_path / "link") == [b"x", b"x"]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def _shrinking(path: Path) -> None:
    path.symlink_to("/sys/devices/system/cpu/online")  # sysfs says 4096 bytes of every file, and gives fewer


@pytest.mark.parametrize(
    ("make", "status", "error"),
    [
        (lambda path: None, "missing", "No such file or directory"),
        (lambda path: os.symlink("nowhere", path), "missing", "No such file or directory"),
        (lambda path: os.symlink(path, path), "missing", "Too many levels of symbolic links"),
        (lambda path: path.mkdir(), "unreadable", "a folder, not a file"),
        (os.mkfifo, "unreadable", "a pipe, not a file"),
        (_socket, "unreadable", "a socket, not a file"),
        (lambda path: os.symlink("/dev/zero", path), "unreadable", "a device, not a file"),
        (lambda path: path.touch(), "empty", "0 bytes"),
        (lambda path: path.write_bytes(bytes(101)), "too_large", "101 bytes, over the limit of 100"),
        (_huge, "too_large", f"{2**40} bytes, over the limit of 100"),
        (_shrinking, "truncated", "the file shrank while it was read"),
    ],
    ids=["gone", "dangling", "circle", "folder", "pipe", "socket", "device", "empty", "too large", "huge", "shrinking"],
)
def test_what_is_no_readable_file_becomes_a_reject_with_the_reason(
    tmp_path: Path, make: Callable[[Path], Any], status: str, error: str
) -> None:
    make(tmp_path / "x")
    found = _one(tmp_path / "x", max_bytes=4096 if status == "truncated" else 100)
    assert (found.status, error in found.error) == (status, True), found.error


@pytest.mark.parametrize("name", ["a\0b", "a" * 256, "\ud800", "x/" * 3000, "0.jpg/x", ""])
def test_a_name_that_cannot_be_a_files_is_missing(files: list[Path], name: str) -> None:
    assert _read(files[0], f"{files[0].parent}/{name}" if name else "", files[1]) == [b"0", "missing", b"1"]


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    assert _read(tmp_path / "x", max_bytes=100) == [bytes(100)]


BY_ITSELF = """
import json, os, sys
import pyarrow as pa
from clipbatch.config import ReadSettings
from clipbatch.stages.read import Read
from clipbatch.types import Item
from clipbatch.types import ItemBatch
items = tuple(Item(row_id=n, uri=path, path=path) for n, path in enumerate(sys.argv[2:]))
read = Read(ReadSettings(read_timeout=30.0, read_retries=1))
read(ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True))
if sys.argv[1] == "other user" and os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
hogs = []
if sys.argv[1] == "no descriptors":
    try:
        while True:
            hogs.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
slots = read(ItemBatch(shard=0, start=0, items=items, rows=pa.table({}), last=True)).slots
print(json.dumps([[getattr(slot, "status", "ok"), getattr(slot, "error", "")] for slot in slots]))
"""


def _by_itself(folder: Path, how: str, *names: str) -> list[list[str]]:
    """Status and error of the files `names`, read by a process of its own."""
    command = [sys.executable, "-c", BY_ITSELF, how, *names]
    found: list[list[str]] = json.loads(subprocess.check_output(command, cwd=folder, timeout=120))
    return found


def test_a_file_that_may_not_be_read_is_unreadable_and_its_neighbour_is_read(tmp_path: Path) -> None:
    for name, mode in (("mine", 0o600), ("all", 0o644), ("locked/x", 0o644)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).chmod(mode if os.getuid() == 0 or mode & 4 else 0)
    (tmp_path / "locked").chmod(0o600 if os.getuid() == 0 else 0)
    tmp_path.chmod(0o755)  # the folders above it stay closed; it is the working folder
    denied = ["unreadable", "Permission denied"]
    found = _by_itself(tmp_path, "other user", "mine", "all", "locked/x", "all")
    (tmp_path / "locked").chmod(0o700)
    assert found == [denied, ["ok", ""], denied, ["ok", ""]]


def test_a_process_without_file_descriptors_says_so_after_its_tries(files: list[Path]) -> None:
    assert _by_itself(files[0].parent, "no descriptors", "0.jpg") == [["unreadable", "Too many open files"]]


@pytest.mark.parametrize("hung", [[4], [0], [9], [0, 1, 8], [8, 9]])
def test_a_hanging_file_is_given_up_and_its_neighbours_are_read(files: list[Path], hold: Hold, hung: list[int]) -> None:
    holder = hold(10**6, *(files[number] for number in hung))
    read = Read(ReadSettings(read_timeout=2.0))
    done = read(_batch(*files))
    assert [_still_hangs(path) for path in files] == [number in hung for number in range(10)]
    assert _told(done) == ["timeout" if n in hung else b"%d" % n for n in range(10)]
    errors = [slot.error for slot in done.slots if isinstance(slot, Reject)]
    assert errors == [f"no answer within 2 s while reading 'uri-{number}'" for number in hung]
    assert _told(read(_batch(*files[:2]))) == ["timeout" if n in hung else b"%d" % n for n in range(2)]
    holder.kill()
    holder.wait()
    assert _told(read(_batch(*files))) == [b"%d" % number for number in range(10)]


def test_the_thread_of_a_file_that_answers_at_last_ends(files: list[Path], hold: Hold) -> None:
    before, holder = set(threading.enumerate()), hold(10**6, files[9])
    assert _read(*files, read_timeout=2.0, read_threads=1)[9] == "timeout"
    ours = {thread for thread in threading.enumerate() if thread.name == "reader"} - before
    assert len(ours) == 1
    holder.kill()
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in ours) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in ours)


def test_a_hanging_file_holds_up_no_other_batch(files: list[Path], hold: Hold) -> None:
    hold(10**6, files[0])
    read = Read(ReadSettings(read_timeout=2.0))
    with ThreadPoolExecutor(8) as pool:
        batches = [_batch(*(files if n % 4 else reversed(files))) for n in range(16)]
        done = list(pool.map(read, batches))
    assert _still_hangs(files[0])
    whole = ["timeout", *(b"%d" % number for number in range(1, 10))]
    assert [_told(batch) for batch in done] == [whole if n % 4 else whole[::-1] for n in range(16)]


def test_the_clock_is_one_file_s_and_not_the_batch_s(files: list[Path], hold: Hold) -> None:
    holder = hold(0.25, *files)  # ten files that answer late: 2.5 s together
    assert _read(*files, read_timeout=2.0) == [b"%d" % number for number in range(10)]
    assert holder.poll() is None
