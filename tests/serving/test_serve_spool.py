"""The service's folder: each job becomes a run, once, whatever ends the service."""

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from clipbatch.serving.jobs import MAX_DEATHS
from clipbatch.serving.spool import Spool
from tests.conftest import DEMO, Cli, needs, rows
from tests.support.corpus import make_folder, photo
from tests.support.serving import PATIENCE_S, answer, drop, serving, wait_for

DEADLY = (233, 179)
"""Width and height of the image that the preloaded library knows by its bytes."""
MANY = 8_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder, 60, seed=8, bad_fraction=0.2)
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("cc")
    library = tmp_path_factory.mktemp("library") / "deadly.so"
    source = Path(__file__).parents[1] / "faults" / "deadly.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def test_jobs_become_the_runs_that_the_command_makes(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with serving(spool) as service:
        drop(spool, "a.txt", files)
        (spool / "in" / "b.txt.tmp").write_text(f"{files[0]}\n")  # as one that is being written
        table = "path,price\n" + "".join(f"{path},{number}\n" for number, path in enumerate(files[:5]))
        (spool / ".b.csv").write_text(table)
        (spool / ".b.csv").rename(spool / "in" / "b.csv")
        drop(spool, "empty.txt", [])
        made = answer(spool, "a.txt")
        assert (made["rows"], sum(made["status"].values())) == (60, 60)
        assert made["out"] == str(spool / "runs" / "a.txt")
        assert rows(spool / "runs" / "b.csv" if answer(spool, "b.csv") else spool)["price"].to_pylist() == list(
            range(5)
        )
        refused = answer(spool, "empty.txt", "failed")
        assert (refused["exit_code"], "no rows" in refused["error"] or "names no" in refused["error"]) == (3, True)
        drop(spool, "a.txt", files[:3])  # a name that was used before
        assert answer(spool, "a-2.txt")["rows"] == 3
        assert "another process serves" in cli("serve", spool, *DEMO, code=6).stderr
        assert (spool / "in" / "b.txt.tmp").exists()
        assert service.end(signal.SIGTERM) == 0
    assert sorted(path.name for path in (spool / "done").iterdir()) == sorted(
        name for job in ("a.txt", "a-2.txt", "b.csv") for name in (job, f"{job}.json")
    )
    listing = "\n".join(map(str, files))
    cli("run", "-", *DEMO, "--device", "cpu", "--out", tmp_path / "run", stdin=listing)
    assert rows(spool / "runs" / "a.txt").equals(rows(tmp_path / "run"))
    assert "60 rows in 1 part," in cli("verify", spool / "runs" / "a.txt").stdout
    assert "nothing was left to do" in cli("run", "--out", spool / "runs" / "a.txt").stdout


def test_a_job_that_ends_the_service_is_finished_by_the_next_one_which_lives(
    files: list[Path], library: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    where = (spool, "--shard-size", "512", "--batch-size", "32")
    photo(np.random.default_rng(1), *DEADLY).save(tmp_path / "deadly.jpg")
    deadly = {
        "LD_PRELOAD": str(library),
        "DEADLY_BYTES": str(3 * DEADLY[0] * DEADLY[1]),
        "DEADLY_SIGNAL": str(int(signal.SIGSEGV)),
    }
    with serving(*where, **deadly) as service:
        drop(spool, "deadly.txt", [*files[:20], tmp_path / "deadly.jpg", *files[20:30]])
        assert service.process.wait(timeout=PATIENCE_S) == -signal.SIGSEGV
        drop(spool, "next.txt", files[:4])
    assert [path.name for path in (spool / "working").iterdir()] == ["deadly.txt"]
    with serving(*where, **deadly) as service:
        made = answer(spool, "deadly.txt")
        assert (made["rows"], made["status"]["crashed"]) == (31, 1)
        assert rows(spool / "runs" / "deadly.txt")["status"].to_pylist()[20] == "crashed"
        assert answer(spool, "next.txt")["rows"] == 4
        drop(spool, "long.txt", [files[number % 60] for number in range(MANY)])
        wait_for(spool / "runs" / "long.txt" / "parts" / "part-00000.parquet")
        assert service.end(signal.SIGTERM) == 0  # a wanted end in the middle of a job
    assert [path.name for path in (spool / "working").iterdir()] == ["long.txt"]
    with serving(*where):
        assert answer(spool, "long.txt")["rows"] == MANY
    found = rows(spool / "runs" / "long.txt")["row_id"].to_pylist()
    assert found == list(range(MANY))
    assert not list((spool / "working").iterdir())


def test_a_job_that_ends_every_service_is_given_up(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    drop(tmp_path, "a.txt", [])
    assert spool.waiting() == ["a.txt"]
    assert spool.take("a.txt") == "a.txt"
    assert spool.take("a.txt") is None
    deaths = [spool.count_death("a.txt") for _ in range(MAX_DEATHS)]
    assert deaths == list(range(1, MAX_DEATHS + 1))
    assert Spool(tmp_path).interrupted() == ["a.txt"]
    with serving(tmp_path):
        assert "11 times" in answer(tmp_path, "a.txt", "failed")["error"]


def test_serving_nothing_and_wrong_addresses_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert "name a SPOOL folder" in cli("serve", *DEMO, code=3).stderr
    assert "use HOST:PORT" in cli("serve", *DEMO, "--http", "localhost:http", code=3).stderr
