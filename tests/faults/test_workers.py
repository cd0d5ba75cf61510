"""A worker may die, hang or be stopped; the run does not, and only the image that kills is given up."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import DEMO, Cli, rows, start
from corpus import make_folder, photo

FILES = 600
DEADLY = (233, 179)  # width and height of the image that the preloaded library knows by its bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    make_folder(folder, FILES, seed=21, bad_fraction=0.1)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("library") / "deadly.so"
    source = Path(__file__).with_name("deadly.c")
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def workers(supervisor: int) -> list[int]:
    """Processes that run `clipbatch.worker` under `supervisor`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == supervisor and b"clipbatch.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


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
def test_the_image_that_kills_gets_a_status_and_all_others_their_scores(
    cli: Cli, folder: Path, library: Path, tmp_path: Path, signum: int, status: str, said: str
) -> None:
    copy = tmp_path / "in"
    shutil.copytree(folder, copy)
    photo(np.random.default_rng(1), *DEADLY).save(copy / "a" / "00100-deadly.jpg")
    command = ("run", copy, *DEMO, "--decoder", "torchvision", "--shard-size", 128)
    cli(*command, "--out", tmp_path / "spared")
    environment = {
        "LD_PRELOAD": str(library),
        "DEADLY_BYTES": str(3 * DEADLY[0] * DEADLY[1]),
        "DEADLY_SIGNAL": str(int(signum)),
    }
    limits = ("--worker-timeout", 4, "--decode-timeout", 2, "--read-timeout", 2)
    made = cli(*command, *limits, "--out", tmp_path / "out", "--json", env=environment)
    (killed,) = [row for row in rows(tmp_path / "out").to_pylist() if row["uri"].endswith("deadly.jpg")]
    assert (killed["status"], killed["scores"]) == (status, None)
    assert said in killed["error"]
    report = json.loads(made.stdout)["this_run"]
    assert [entry["row_id"] for entry in report["quarantined"]] == [killed["row_id"]]
    assert report["restarts"] >= 1
    spared = rows(tmp_path / "spared")
    others = np.array(spared["row_id"]) != killed["row_id"]
    assert rows(tmp_path / "out").filter(others).equals(spared.filter(others))
    cli(*command, "--out", tmp_path / "out", "--retry-bad")  # without the library
    assert parts(tmp_path / "out") == parts(tmp_path / "spared")


def test_a_worker_that_is_stopped_is_replaced(cli: Cli, folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(path) for path in sorted(folder.rglob("*.jpg"))[:200] * 20))
    command = ("run", listed, *DEMO, "--shard-size", 256)
    cli(*command, "--out", tmp_path / "whole")
    process = start(*command, "--worker-timeout", 3, "--out", tmp_path / "out")
    while not parts(tmp_path / "out"):
        time.sleep(0.05)
    (worker,) = workers(process.pid)
    os.kill(worker, signal.SIGSTOP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "did not answer" in err
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


def test_random_kills_of_supervisor_and_worker_leave_no_trace(cli: Cli, folder: Path, tmp_path: Path) -> None:
    kills = int(os.environ.get("CLIPBATCH_KILLS", "20"))
    command = ("run", folder, *DEMO, "--shard-size", 32)
    cli(*command, "--out", tmp_path / "whole")
    dice, out, done = random.Random(kills), tmp_path / "out", 0
    while done < kills:
        process = start(*command, "--out", out)
        while process.poll() is None and done < kills:
            time.sleep(dice.uniform(0.02, 3))
            victims = [process.pid, *workers(process.pid) * 2]
            if process.poll() is None:
                os.kill(dice.choice(victims), signal.SIGKILL)
                done += 1
        _, err = process.communicate(timeout=120)
        gave_up = "workers in a row have ended" in err  # more kills than a run takes for chance; the next one goes on
        assert process.returncode in (0, -signal.SIGKILL) or gave_up, err
        if process.returncode == 0:  # go on with a run in progress
            for part in list((out / "parts").glob("*.parquet"))[::2]:
                part.unlink()
    cli("run", "--out", out)
    assert parts(out) == parts(tmp_path / "whole")
    assert [path for path in (out / "parts").iterdir() if path.suffix != ".parquet"] == []
