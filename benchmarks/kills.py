"""Whether 200 kills of each command that writes leave a trace.

    python benchmarks/kills.py [--kills 200] [--only run,rescore] [--seed 1] [--report PATH]

`run`, `run --repair` of a run whose parts are all damaged, `rescore`, `compact` and two nights of `run --incremental`
label small pictures with the embedded model, in shards of 16 rows, and get SIGKILL at random moments, one in three to
the supervisor and two in three to a worker (`tests/faults/killing.py`, of which the tests have a small form). Each time
the same command goes on. A kill counts where a file has been published since the one before it, or since the command
was started; those while it starts, lists or plans are made too, and counted apart.

Expected: after each round, every file is that of undisturbed work, byte for byte, and none is left over.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.faults.killing import (
    Kills,
    Work,
    compact_work,
    increments_work,
    kill_often,
    repair_work,
    rescore_work,
    run_work,
)

EXPECTED = "every file is that of undisturbed work, byte for byte, and none is left over."


def clipbatch(*arguments: object) -> None:
    """Do `clipbatch ARGUMENTS`, undisturbed."""
    subprocess.run([sys.executable, "-m", "clipbatch", *map(str, arguments)], check=True, capture_output=True)


MAKERS: dict[str, Callable[[Path], Work]] = {
    "run": lambda folder: run_work(folder, 160),
    "repair": lambda folder: repair_work(folder, 160, clipbatch),
    "rescore": lambda folder: rescore_work(folder, 320, clipbatch),
    "compact": lambda folder: compact_work(folder, 640, clipbatch),
    "increments": lambda folder: increments_work(folder, 160, nights=2),
}


def main() -> None:
    parser = harness.arguments("Kill every command that writes at random moments, and compare what it leaves.")
    parser.add_argument("--kills", type=int, default=200, help="of each command, that count")
    parser.add_argument("--only", default=",".join(MAKERS), help="some of the commands")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    on, found, lines = harness.machine(), dict[str, Any](), []
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as text:
            begun = time.perf_counter()
            print(name, file=sys.stderr, flush=True)
            work = MAKERS[name](Path(text))
            done = kill_often(work, Path(text), kills=args.kills, seed=args.seed, do=clipbatch)
            seconds = time.perf_counter() - begun
        lines.append(_line(name, done, seconds))
        found[name] = {"kills": done.counted, "early": done.early, "rounds": done.rounds, "wrong": done.wrong}
    header = ("command", "kills", "of supervisors", "of workers", "early", "rounds", "files that differ", "minutes")
    harness.finish("Kills", harness.table(header, lines), EXPECTED, {"machine": on, "commands": found}, args.report)
    if any(entry["wrong"] for entry in found.values()):
        raise SystemExit(1)


def _line(name: str, done: Kills, seconds: float) -> tuple[str, ...]:
    counts = (done.counted, done.supervisors, done.workers, done.early, done.rounds, len(done.wrong))
    return (name, *map(str, counts), f"{seconds / 60:.1f}")


if __name__ == "__main__":
    main()
