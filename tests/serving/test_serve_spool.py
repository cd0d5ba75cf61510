"""The service's folder: each job becomes a run, once, whatever ends the service, and nothing in it ends the service."""

import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipbatch.serving.jobs import MAX_DEATHS
from clipbatch.serving.spool import Spool
from tests.conftest import DEMO, Cli, needs, rows, start
from tests.support.corpus import make_folder, photo
from tests.support.serving import answer, ask, drop, paths, serving, wait_for
from tests.support.spool_kills import PHASES, kill_in

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


def test_a_signal_while_the_model_is_loaded_is_a_wanted_end(tmp_path: Path) -> None:
    process = start("serve", tmp_path / "spool", *DEMO, "--device", "cpu")
    wait_for(tmp_path / "spool" / "in")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert re.fullmatch(r"\S+ INFO    ended by SIGTERM before the model was loaded: nothing had been taken\n", said), (
        said
    )


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


def test_an_image_that_kills_the_decoder_costs_its_row_and_a_killed_service_goes_on(
    files: list[Path], library: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    where = (spool, "--shard-size", "512", "--batch-size", "32", "--http", "0", "--root", tmp_path)
    photo(np.random.default_rng(1), *DEADLY).save(tmp_path / "deadly.jpg")
    deadly = {
        "LD_PRELOAD": str(library),
        "DEADLY_BYTES": str(3 * DEADLY[0] * DEADLY[1]),
        "DEADLY_SIGNAL": str(int(signal.SIGSEGV)),
    }
    with serving(*where, **deadly) as service:
        drop(spool, "deadly.txt", [*files[:20], tmp_path / "deadly.jpg", *files[20:30]])
        with ThreadPoolExecutor(4) as clients:  # others' requests are in the same batches
            names = [["deadly.jpg"], ["nowhere.jpg", "deadly.jpg"], ["nowhere.jpg"], ["deadly.jpg"]]
            answers = list(clients.map(lambda some: ask(service.url, paths(some), "application/json").json(), names))
        statuses = [[row["status"] for row in found["rows"]] for found in answers]
        assert statuses == [["crashed"], ["missing", "crashed"], ["missing"], ["crashed"]]
        assert "ends a process by SIGSEGV" in answers[0]["rows"][0]["error"]
        made = answer(spool, "deadly.txt")
        assert (made["rows"], made["status"]["crashed"]) == (31, 1)
        table = rows(spool / "runs" / "deadly.txt")
        assert table["status"].to_pylist()[20] == "crashed"
        assert table["status"].to_pylist().count("crashed") == 1
        drop(spool, "killed.txt", [*files[:20], tmp_path / "deadly.jpg", *files[20:40]])
        wait_for(spool / "working" / "killed.txt")
        service.process.kill()
        service.process.wait()
        drop(spool, "next.txt", files[:4])
    assert [path.name for path in (spool / "working").iterdir()] == ["killed.txt"]
    with serving(*where, **deadly) as service:
        made = answer(spool, "killed.txt")
        assert (made["rows"], made["status"]["crashed"]) == (41, 1)
        assert rows(spool / "runs" / "killed.txt")["status"].to_pylist()[20] == "crashed"
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


@pytest.mark.parametrize("phase", PHASES)
def test_a_service_that_is_killed_in_any_phase_leaves_each_job_done_once(phase: str, tmp_path: Path) -> None:
    done = kill_in(phase, tmp_path, int(os.environ.get("CLIPBATCH_KILLS", "1")))
    assert done.wrong == []


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
