"""Disks fill up, turn read-only, vanish, rot and lie about the time; no row is lost or doubled, and the reason is said.

Faults are real: tmpfs mounts, file-size limits, deleted folders, flipped bits and libfaketime. What needs a right to
mount, or a tool that is not there, is skipped.
"""

import os
import random
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.rundir import verify
from clipbatch.rundir.counts import CACHE
from clipbatch.rundir.layout import RunDir
from tests.conftest import DEMO, Cli, needs, rows, start
from tests.support.corpus import photo

FILES, TIMES, SHARD = 100, 16, 64
PAGE = resource.getpagesize()
Mount = Callable[[Path, str], bool]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest that names FILES small photos, TIMES over."""
    folder, rng = tmp_path_factory.mktemp("storage"), np.random.default_rng(8)
    names = [f"{number:03}.jpg" for number in range(FILES)]
    for name in names:
        photo(rng, 80, 60).save(folder / name, quality=85)
    (folder / "list.txt").write_text("\n".join(names * TIMES))
    return folder / "list.txt"


@pytest.fixture(scope="module")
def whole(warm: Cli, listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `listed` that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    warm("run", listed, *DEMO, "--shard-size", SHARD, "--out", out)
    return out


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a tmpfs on a folder, or remounts the one there with other options; whether the kernel did it."""
    mounted: set[Path] = set()

    def mount(folder: Path, options: str) -> bool:
        how = ("-o", f"remount,{options}") if folder in mounted else ("-t", "tmpfs", "-o", options, "none")
        folder.mkdir(exist_ok=True)
        if subprocess.run(["mount", *how, folder], stderr=subprocess.DEVNULL, check=False).returncode:
            return False if folder in mounted else pytest.skip("may not mount")
        mounted.add(folder)
        return True

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


def pages(*paths: Path) -> int:
    """Bytes that `paths` take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in paths)


def refused(cli: Cli, *args: object, **more: object) -> str:
    """What `clipbatch ARGS` says as it ends with exit code 3: one line."""
    (line,) = cli(*args, "--quiet", code=3, **more).stderr.splitlines()
    return str(line)


def copied(whole: Path, out: Path, *, without: slice) -> Path:
    """The undisturbed run at `out`, without some of its parts."""
    shutil.copytree(whole, out)
    for part in sorted((out / "parts").iterdir())[without]:
        part.unlink()
    return out


def interrupt(out: Path, listed: Path, disturb: Callable[[], None]) -> str:
    """Begin a run, `disturb` it as soon as it has a part; what it says as it ends with exit code 3: one line."""
    process = start("run", listed, *DEMO, "--shard-size", SHARD, "--quiet", "--out", out)
    while not list(out.glob("parts/*.parquet")) and process.poll() is None:
        time.sleep(0.01)
    disturb()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3, err
    (line,) = err.splitlines()
    return line


def test_a_disk_that_fills_up_again_and_again_is_named_and_once_there_is_room_the_run_completes(
    warm: Cli, listed: Path, whole: Path, tmp_path: Path, tmpfs: Mount
) -> None:
    out = tmp_path / "out"
    command = ("run", listed, *DEMO, "--shard-size", SHARD, "--out", out)
    planned = 2 * pages(whole / "run.json") + pages(*(whole / "manifest").iterdir())
    planned += PAGE  # who is at work says so in a small file, and later the report has its place
    modelled = planned + PAGE + 2 * pages(whole / "model.json", whole / "text.npy")  # there is a second copy of each
    first, *_, last = sorted((whole / "parts").iterdir())
    done = modelled + pages(*(whole / "parts").iterdir())
    for size, at, published in [
        (PAGE, "manifest", 0),
        (planned, "text.npy", 0),
        (planned + PAGE + pages(whole / "text.npy"), "model.json", 0),
        (modelled + pages(first) + PAGE, "part-00001", 1),
        (done - PAGE, last.stem, len(parts(whole)) - 1),
    ]:
        tmpfs(out, f"size={size}")
        said = refused(warm, *command)
        assert re.search(f"{out}.*{at}.*: No space left on device; free some space there", said), said
        assert parts(out) == dict(sorted(parts(whole).items())[:published])
        assert {path.name for path in out.rglob(".*")} <= {CACHE}
    tmpfs(out, f"size={2 * done}")
    warm(*command)
    assert parts(out) == parts(whole)
    warm("verify", out)


def test_a_file_size_limit_is_named(cli: Cli, whole: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "out", without=slice(None))
    limits = (min(map(len, parts(whole).values())) - 1,) * 2
    said = refused(cli, "run", "--out", out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    assert f"{out / 'parts' / 'part-'}" in said
    assert "ulimit -f" in said
    assert list((out / "parts").iterdir()) == []


def test_a_read_only_output_is_refused_before_anything_is_read(
    warm: Cli, listed: Path, tmp_path: Path, tmpfs: Mount
) -> None:
    out = tmp_path / "out"
    tmpfs(out, "size=1m,ro")
    for command in ("plan", "run"):
        said = warm(command, listed, *DEMO, "--out", out, code=3).stderr
        assert f"{out}" in said
        assert "it is mounted read-only: choose another --out" in said


def test_an_output_that_turns_read_only_is_named_and_power_lost_before_the_folder_is_synced_costs_one_part(
    warm: Cli, listed: Path, whole: Path, tmp_path: Path, tmpfs: Mount
) -> None:
    out = tmp_path / "out"
    tmpfs(out, "size=4m")

    def freeze() -> None:
        assert any(tmpfs(out, "ro") for _ in range(10_000))  # refused while a file is open for writing

    said = interrupt(out, listed, freeze)
    assert f"{out / 'parts'}" in said
    assert "it is mounted read-only" in said
    tmpfs(out, "rw")
    published = parts(out)
    assert 0 < len(published) < len(parts(whole))
    assert published.items() <= parts(whole).items()
    (out / "parts" / max(published)).unlink()  # the rename that a power cut takes back
    warm("run", listed, *DEMO, "--shard-size", SHARD, "--out", out)
    assert parts(out) == parts(whole)


@pytest.mark.parametrize("what", ["parts", "."])
def test_an_output_that_vanishes_is_named(listed: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"

    def remove() -> None:
        while (out / what).exists():  # a part may come while it is emptied
            shutil.rmtree(out / what, ignore_errors=True)

    said = interrupt(out, listed, remove)
    assert f"{out}" in said
    assert "the folder has gone: put it back, or choose another --out" in said


def test_files_that_change_after_the_plan_get_their_status_and_their_neighbours_their_scores(
    warm: Cli, listed: Path, whole: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(listed.parent, folder)
    warm("plan", folder / "list.txt", *DEMO, "--shard-size", SHARD, "--limit", FILES, "--out", out)
    expected = {10: "truncated", 20: "ok", 30: "missing", 40: "empty", 50: "unreadable", 60: "missing", 70: "ok"}
    paths = {number: folder / f"{number:03}.jpg" for number in expected}
    os.truncate(paths[10], paths[10].stat().st_size // 2)
    paths[20].write_bytes(paths[20].read_bytes() + bytes(1000))
    for number in (30, 40, 50, 60):
        paths[number].unlink()
    paths[40].touch()
    paths[50].mkdir()
    paths[60].symlink_to("nowhere.jpg")
    photo(np.random.default_rng(1), 50, 90).save(paths[70], "PNG")
    warm("run", "--out", out)
    warm("verify", out)
    table, before = rows(out), rows(whole).slice(0, FILES)
    assert {number: table["status"][number].as_py() for number in expected} == expected
    untouched = pa.array([number not in expected or number == 20 for number in range(FILES)])
    assert table.filter(untouched).equals(before.filter(untouched))


def test_every_kind_of_damage_to_parts_is_found_and_mended(warm: Cli, whole: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "out", without=slice(3, 4))
    names = sorted(parts(whole))
    whole_5, whole_9, whole_11 = (parts(whole)[names[number]] for number in (5, 9, 11))
    for number, data in {5: whole_5[:-1], 7: b"", 9: whole_11, 11: bytes(len(whole_11)), 13: whole_9[::-1]}.items():
        (out / "parts" / names[number]).write_bytes(data)
    said = warm("verify", out, code=5).stderr
    assert [name for name in names if name in said] == [names[number] for number in (3, 5, 7, 9, 11, 13)]
    warm("run", "--out", out, "--repair")
    assert parts(out) == parts(whole)


@pytest.mark.parametrize(("harm", "flag"), [("empty", "--quiet"), ("read-only", "--repair")])
def test_an_output_that_was_spoiled_is_refused_in_one_line(
    whole: Path, tmp_path: Path, tmpfs: Mount, harm: str, flag: str
) -> None:
    tmpfs(tmp_path / "disk", "size=4m")
    out = copied(whole, tmp_path / "disk" / "out", without=slice(0))
    part = min((out / "parts").iterdir())
    part.write_bytes(b"")
    if harm == "read-only":
        tmpfs(tmp_path / "disk", "ro")
    process = start("run", "--out", out, "--quiet", flag)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (3, 5), err
    (line,) = err.splitlines()
    assert part.name in line


@pytest.mark.parametrize("clock", ["+0 x1000", "-30y x-500"])
def test_a_clock_that_races_or_runs_backwards_changes_no_byte(
    cli: Cli, whole: Path, tmp_path: Path, clock: str
) -> None:
    needs("faketime")
    out = copied(whole, tmp_path / "out", without=slice(4))
    where = subprocess.run(["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True)
    fake = {"LD_PRELOAD": where.stdout.strip(), "FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    cli("run", "--out", out, env=fake)
    assert parts(out) == parts(whole)


def read(part: Path) -> object:
    """Rows, statistics, offsets and key-value metadata: all that a reader of `part` can learn."""
    metadata = pq.read_metadata(part)
    return pq.read_table(part), metadata.to_dict(), metadata.metadata


def harmless(run: RunDir, part: Path, original: object) -> bool:
    """Whether `verify` names damage (ending in an exception is no answer), or readers get what they got before."""
    try:
        return bool(list(verify.problems(run, run.plan(), [0]))) or read(part) == original
    except (OSError, LookupError, TypeError, ValueError, pa.ArrowException):
        return False


def test_a_flipped_bit_is_found_or_harmless(warm: Cli, listed: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "out")
    warm("run", listed, *DEMO, "--limit", SHARD, "--shard-size", SHARD, "--out", run.path)
    (part,) = run.parts.iterdir()
    whole, original, silent = part.read_bytes(), read(part), []
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        part.write_bytes(data)
        if not harmless(run, part, original):
            silent.append((bit // 8, bit % 8))
    assert silent == [], f"the footer begins at {len(whole) - 8 - int.from_bytes(whole[-8:-4], 'little')}"
