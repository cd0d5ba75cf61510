"""A spool's service that is killed with SIGKILL in each phase of a job, and started again.

Every job must then be done exactly once, with the rows of undisturbed work. The phases are those of serving/jobs.py,
told by what lies in the spool. Knows no pytest: `benchmarks/siege.py kills` kills more often.
"""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tests.conftest import rows
from tests.support.corpus import make_folder
from tests.support.serving import Service, drop, serving

_PARTS = 12
_OPTIONS = ("--batch-size", "8", "--shard-size", "8")
_PATIENCE_S = 120.0
PHASES: dict[str, Callable[[Path, str], bool]] = {
    "taken": lambda spool, job: (spool / "working" / job).exists(),
    "planned": lambda spool, job: (spool / "runs" / job / "run.json").exists(),
    "in work": lambda spool, job: len(list((spool / "runs" / job).glob("parts/part-*"))) > 2,
    "finishing": lambda spool, job: len(list((spool / "runs" / job).glob("parts/part-*"))) >= _PARTS,
}
"""What is there when a job of a name is in each phase."""


@dataclass(slots=True)
class SpoolKills:
    """What came of it."""

    kills: int = 0
    jobs: int = 0
    wrong: list[str] = field(default_factory=list)


def kill_in(phase: str, folder: Path, kills: int, seed: int = 1) -> SpoolKills:
    """Kill the service of a new spool in `folder` so often, each time over a job of its own."""
    dice, done, spool = random.Random(seed), SpoolKills(), folder / "spool"
    make_folder(folder / "images", _PARTS * 8, seed=6, bad_fraction=0.1)
    images = sorted(path for path in (folder / "images").rglob("*") if path.is_file())
    expected: pa.Table | None = None
    with contextlib.ExitStack() as stack:
        service: Service = stack.enter_context(serving(spool, *_OPTIONS))
        drop(spool, "whole.txt", images)
        _wait(spool, "whole.txt")
        expected = rows(spool / "runs" / "whole.txt")
        while done.kills < kills:
            job = f"job-{done.jobs}.txt"
            drop(spool, job, images)
            done.jobs += 1
            while not PHASES[phase](spool, job) and not _is_answered(spool, job):
                time.sleep(0.0005)
            time.sleep(dice.uniform(0, 0.02))
            if not _is_answered(spool, job):
                service.process.send_signal(signal.SIGKILL)
                service.process.wait()
                done.kills += 1
                stack.pop_all().close()
                service = stack.enter_context(serving(spool, *_OPTIONS))
            done.wrong += _differences(spool, job, expected)
        if left := [name for name in os.listdir(spool / "working") if name != ".lock"]:
            done.wrong.append(f"left in working/: {left}")
    return done


def _is_answered(spool: Path, job: str) -> bool:
    return any((spool / result / f"{job}.json").exists() for result in ("done", "failed"))


def _wait(spool: Path, job: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not _is_answered(spool, job):
        if time.monotonic() > until:
            raise TimeoutError(f"{job}: {sorted(map(str, spool.glob('*/*')))}")
        time.sleep(0.005)


def _differences(spool: Path, job: str, expected: pa.Table) -> list[str]:
    """What is wrong with a job once it is answered."""
    _wait(spool, job)
    places = [str(path.parent.name) for path in spool.glob(f"*/{job}") if path.parent.name != "runs"]
    answers = [path for result in ("done", "failed") for path in (spool / result).glob(f"{job}*.json")]
    if places != ["done"] or [path.name for path in answers] != [f"{job}.json"]:
        return [f"{job} lies in {places}, with the answers {answers}"]
    answer = json.loads(answers[0].read_text())
    wrong = [] if answer["rows"] == len(expected) else [f"{job}: {answer}"]
    return wrong if rows(spool / "runs" / job).equals(expected) else [*wrong, f"{job}: other rows"]
