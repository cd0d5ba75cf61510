"""A worker may die, hang or be stopped: the run goes on, and only an image that kills is given up."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli, needs, rows, start
from tests.faults.killing import workers
from tests.support.corpus import make_folder, photo

FILES = 600
DEADLY = (233, 179)  # width and height of the image that the preloaded library knows by its bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    make_folder(folder, FILES, seed=21, bad_fraction=0.1)
    return folder


@pytest.fixture(scope="module")
def deadly_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`folder` and an image that kills where the library is preloaded."""
    copy = tmp_path_factory.mktemp("deadly") / "in"
    shutil.copytree(folder, copy)
    photo(np.random.default_rng(1), *DEADLY).save(copy / "a" / "00100-deadly.jpg")
    return copy


@pytest.fixture(scope="module")
def spared(warm: Cli, deadly_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over `deadly_folder` where nothing kills."""
    out = tmp_path_factory.mktemp("spared") / "out"
    warm("run", deadly_folder, *DEMO, "--decoder", "torchvision", "--shard-size", 128, "--out", out)
    return out


@pytest.fixture(scope="module")
def long_list(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 2,000 rows."""
    listed = tmp_path_factory.mktemp("long") / "list.txt"
    listed.write_text("\n".join(str(path) for path in sorted(folder.rglob("*.jpg"))[:200] * 10))
    return listed


@pytest.fixture(scope="module")
def whole(warm: Cli, long_list: Path) -> dict[str, bytes]:
    """The parts of an undisturbed run over `long_list`."""
    out = long_list.with_name("out")
    warm("run", long_list, *DEMO, "--shard-size", 256, "--out", out)
    return parts(out)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("library") / "deadly.so"
    source = Path(__file__).with_name("deadly.c")
    needs("cc")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


@pytest.mark.parametrize(
    ("signum", "status", "said"),
    [
        (signal.SIGSEGV, "crashed", "by SIGSEGV"),
        (signal.SIGABRT, "crashed", "by SIGABRT"),
        (signal.SIGKILL, "crashed", "by SIGKILL"),  # as the kernel does when memory runs out
        (0, "timeout", "longer than"),
    ],
)
def test_an_image_that_kills_gets_a_status_and_all_others_their_scores(
    cli: Cli,
    warm: Cli,
    deadly_folder: Path,
    spared: Path,
    library: Path,
    tmp_path: Path,
    signum: int,
    status: str,
    said: str,
) -> None:
    command = ("run", deadly_folder, *DEMO, "--decoder", "torchvision", "--shard-size", 128)
    environment = {
        "LD_PRELOAD": str(library),
        "DEADLY_BYTES": str(3 * DEADLY[0] * DEADLY[1]),
        "DEADLY_SIGNAL": str(int(signum)),
    }
    limits = () if signum else ("--worker-timeout", 4, "--decode-timeout", 2, "--read-timeout", 2)
    made = cli(*command, *limits, "--out", tmp_path / "out", "--json", env=environment)
    (killed,) = [row for row in rows(tmp_path / "out").to_pylist() if row["uri"].endswith("deadly.jpg")]
    assert (killed["status"], killed["scores"]) == (status, None)
    assert said in killed["error"]
    report = json.loads(made.stdout)["this_run"]
    assert [entry["row_id"] for entry in report["quarantined"]] == [killed["row_id"]]
    assert report["restarts"] >= 1
    expected = rows(spared)
    others = np.array(expected["row_id"]) != killed["row_id"]
    assert rows(tmp_path / "out").filter(others).equals(expected.filter(others))
    warm(*command, "--out", tmp_path / "out", "--retry-bad")  # without the library
    assert parts(tmp_path / "out") == parts(spared)


def test_a_worker_that_is_stopped_is_replaced(long_list: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    command = ("run", long_list, *DEMO, "--shard-size", 256)
    process = start(*command, "--worker-timeout", 3, "--out", tmp_path / "out")
    while not parts(tmp_path / "out"):
        time.sleep(0.05)
        assert process.poll() is None
    worker = workers(process.pid)[0]
    os.kill(worker, signal.SIGSTOP)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "did not answer" in err
    assert parts(tmp_path / "out") == whole


def test_the_others_take_over_from_a_worker_that_is_stopped(
    long_list: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Without waiting for --worker-timeout: a shard that takes too long is given to a worker that is idle."""
    command = ("run", long_list, *DEMO, "--shard-size", 256)
    process = start(*command, "--workers", 2, "--out", tmp_path / "out", "--json")
    while not parts(tmp_path / "out"):
        time.sleep(0.05)
        assert process.poll() is None
    first, second = workers(process.pid)
    os.kill(first, signal.SIGSTOP)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["rows_done"] == 2_000
    assert report["this_run"]["restarts"] == 0
    assert {entry.name for entry in (tmp_path / "out" / "parts").iterdir()} == whole.keys()
    assert parts(tmp_path / "out") == whole
    assert not alive(first)
    assert not alive(second)


def test_two_workers_write_the_same_parts_as_one(cli: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("run", folder, *DEMO, "--shard-size", 32)
    cli(*command, "--out", tmp_path / "one", env={"XDG_CACHE_HOME": str(tmp_path / "cold")})
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cold too")}
    process = start(*command, "--workers", 2, "--out", tmp_path / "two", env=environment)
    while len(found := workers(process.pid)) < 2 or not parts(tmp_path / "two"):
        time.sleep(0.02)
        assert process.poll() is None
    cores = [os.sched_getaffinity(worker) for worker in found]
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    if os.cpu_count() == 1:
        assert cores == [{0}, {0}]
    else:
        assert not cores[0] & cores[1]
        assert cores[0] | cores[1] == os.sched_getaffinity(0)
    assert parts(tmp_path / "two") == parts(tmp_path / "one")
    assert (tmp_path / "two" / "text.npy").read_bytes() == (tmp_path / "one" / "text.npy").read_bytes()
