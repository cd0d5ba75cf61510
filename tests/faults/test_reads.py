"""Disks that fail and servers that crawl: each file its status, its neighbours their scores, and once it is mended all.

A preloaded library makes the reads of files with certain names fail, crawl or come in crumbs (badreads.c).
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli, needs, rows
from tests.support.corpus import photo

# What each name's reads meet, with --read-retries 2 and --read-timeout 2, and the status that comes of it.
BAD = {
    "eio-1-": "ok",  # a bad moment: the next try finds the file well
    "eio-2-": "ok",
    "half-eio-2-": "ok",  # and the bytes from before the failure are not there twice
    "eio-3-": "unreadable",
    "half-eio-3-": "unreadable",
    "eio-999-": "unreadable",
    "short-7-": "ok",
    "short-1-eio-1-": "ok",
    "slow-50-": "ok",
    "slow-5-short-99-half-eio-1-": "ok",
    "slow-60000-": "timeout",
    "half-slow-700-": "timeout",  # every single read answers in time, but the file does not
}
SHARD = 16


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which reads fail."""
    library = tmp_path_factory.mktemp("library") / "badreads.so"
    needs("cc")
    source = Path(__file__).with_name("badreads.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl", "-lpthread"], check=True)
    return {"LD_PRELOAD": str(library)}


def fill(folder: Path, names: list[str], *, side: int) -> None:
    """A photo of about side x side pixels for each of `names`, in the new `folder`."""
    rng = np.random.default_rng(len(names))
    folder.mkdir()
    for name in names:
        photo(rng, side, side - side // 4).save(folder / name, quality=85)


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").glob("*.parquet")}


def test_reads_that_fail_or_crawl_cost_their_own_rows_and_a_mended_disk_gives_them_back(
    cli: Cli, failing: dict[str, str], tmp_path: Path
) -> None:
    faults = [fault for bad in BAD for fault in (bad, "fine-", "fine-", "fine-")]
    names = [f"{number:02}-{fault}.jpg" for number, fault in enumerate(faults)]
    fill(tmp_path / "in", names, side=80)
    limits = ("--read-retries", 2, "--read-timeout", 2, "--batch-size", SHARD, "--shard-size", SHARD)
    command = ("run", tmp_path / "in", *DEMO, *limits)
    cli(*command, "--out", tmp_path / "whole")
    made = cli(*command, "--out", tmp_path / "out", "--json", env=failing)
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "out")
    wanted = [BAD.get(fault, "ok") for fault in faults]
    assert found["status"].to_pylist() == wanted
    assert json.loads(made.stdout)["this_run"]["restarts"] == 0
    fine = np.array(wanted) == "ok"
    assert found.filter(fine).equals(whole.filter(fine))
    errors = [row["error"] for row in found.filter(~fine).to_pylist()]
    assert {error.split(" while reading ")[0] for error in errors} == {"Input/output error", "no answer within 2 s"}
    bad = parts(tmp_path / "out")
    cli(*command, "--out", tmp_path / "out")  # what is done stays as it is
    assert parts(tmp_path / "out") == bad
    cli(*command, "--out", tmp_path / "out", "--retry-bad")
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


def test_a_batch_of_slow_files_may_take_longer_than_a_worker_may_be_silent(
    cli: Cli, failing: dict[str, str], tmp_path: Path
) -> None:
    fill(tmp_path / "in", [f"{n:02}-slow-230-.jpg" for n in range(16)], side=40)
    slowest = 3 * 0.23 * 16  # seconds that the batch takes at least: each file comes in 3 reads or more
    limits = ("--worker-timeout", 5, "--read-timeout", 15, "--batch-size", 16)
    made = cli("run", tmp_path / "in", *DEMO, *limits, "--out", tmp_path / "out", "--json", env=failing)
    assert min(path.stat().st_size for path in (tmp_path / "in").iterdir()) > 2 * 512
    assert slowest > 2 * 5
    assert json.loads(made.stdout)["this_run"]["restarts"] == 0
    assert rows(tmp_path / "out")["status"].to_pylist() == ["ok"] * 16
