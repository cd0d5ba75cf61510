"""Killed at random moments and begun again, every command leaves what it leaves undisturbed.

`benchmarks/kills.py` kills more often.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.faults.killing import (
    Do,
    Work,
    captions_work,
    compact_work,
    differences,
    increments_work,
    kill_often,
    repair_work,
    rescore_work,
    run_work,
)

KILLS = int(os.environ.get("CLIPBATCH_KILLS", "2"))


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, do: run_work(folder, 64),
        lambda folder, do: captions_work(folder, 64),
        lambda folder, do: repair_work(folder, 64, do),
        lambda folder, do: rescore_work(folder, 96, do),
        lambda folder, do: compact_work(folder, 192, do),
        lambda folder, do: increments_work(folder, 64, nights=2),
    ],
    ids=["run", "captions", "repair", "rescore", "compact", "increments"],
)
def test_random_kills_leave_no_trace(warm: Cli, tmp_path: Path, make: Callable[[Path, Do], Work]) -> None:
    done = kill_often(make(tmp_path, warm), tmp_path, kills=KILLS, seed=KILLS, do=warm)
    assert done.wrong == []
    assert done.counted >= KILLS


def test_what_is_changed_lost_or_left_over_is_named(tmp_path: Path) -> None:
    for folder in ("whole", "killed"):
        (tmp_path / folder / "parts").mkdir(parents=True)
        for name in ("parts/same", "parts/changed", "lost", "report.json"):
            (tmp_path / folder / name).write_text(name)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    killed = tmp_path / "killed"
    (killed / "parts" / "changed").write_text("parts/chanced")
    (killed / "parts" / ".left.tmp").touch()
    (killed / "report.json").unlink()
    (killed / "lost").unlink()
    named = [killed / "lost", killed / "parts" / ".left.tmp", killed / "parts" / "changed"]
    assert differences(tmp_path / "whole", killed) == [str(path) for path in named]
