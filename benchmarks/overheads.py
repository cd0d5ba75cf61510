"""What supervision and the journal cost: the same stages over the same rows, with and without them.

    python benchmarks/supervision.py [--rounds N] [--images N] [--report PATH]

Small pictures and the embedded model on the CPU: the most images a second that there can be, and so the most messages,
journal entries and shards. In turns, each in a process of its own over a new run directory that is planned already:

    supervised  `clipbatch run`, as users start it: a supervisor hands out shards and is told of batches, and the worker
                notes in shared memory what it has in hand
    bare        the worker's stages joined in a process of their own, all shards at once, telling nobody, with a
                journal that notes nothing

Both are watched from outside, 20 times a second: parts done, and CPU seconds of the process and its children. Figures
count from the first part to the last but one, so no start, no model, and full queues. A round is supervised, bare,
bare, supervised, so that neither is always the first; the two bare ones of a round, one over the other, show the noise.
CPU time feels other work on the machine less than the clock does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness as timing
from clipbatch.config import from_flat
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import Task, Worker
from contestants import NoJournal
from memory import children
from soak import small_pool, write_manifest

SHARD = 1024
EVERY_S = 0.05
WANTED = "<= 1.02"
EXPECTED = (
    "bare / supervised at most 1.02 in images/s, in the median. The supervisor sleeps between messages, of which there "
    "are ten a second at most and two more for each part; an entry of the journal is 16 bytes written to memory."
)


def bare(out: str) -> None:
    """All shards of the planned run in `out` by its stages alone."""
    run = RunDir(out)
    run.make_parts()
    plan = run.plan()
    worker = Worker(run, plan.fingerprint, "cpu", {}, NoJournal())
    for _ in worker.label(Task(shard=shard) for shard in range(plan.shards)):
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How far a run is at a moment."""

    at_s: float
    parts: int
    cpu_s: float
    """Of all its processes so far."""
    first_cpu_s: float
    """Of the process that was started: the supervisor, or the bare one."""


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 where it has ended. Source: proc(5), stat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(command: list[str], out: Path) -> list[Moment]:
    """Run `command`, which fills the run directory `out`; a moment every EVERY_S seconds."""
    moments, begun = list[Moment](), time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            own, theirs = cpu_s(process.pid), sum(map(cpu_s, children(process.pid)))
            parts, at_s = len(list(out.glob("parts/part-*.parquet"))), time.perf_counter() - begun
            moments.append(Moment(at_s=at_s, parts=parts, cpu_s=own + theirs, first_cpu_s=own))
            time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"{command} ended with exit code {process.returncode}")
    return moments


class Contest:
    """Both contestants over one manifest."""

    def __init__(self, manifest: Path, scratch: Path) -> None:
        self._given: dict[str, Any] = {"inputs": [str(manifest)], "labels": "cifar10", "model": "clipbatch-demo"}
        self._given |= {"device": "cpu", "shard_size": SHARD}
        self._scratch = scratch
        self.cpu_ms: dict[str, list[float]] = {}
        """CPU milliseconds an image in each run, by contestant, the warm-up's first."""
        self.supervisor: list[float] = []
        """The supervisor's share of the CPU seconds of each supervised run."""

    def runs(self, name: str, *command: str) -> Callable[[], float]:
        """A contestant: plans a run, does it with `command` and its folder, returns images a second."""

        def run() -> float:
            with tempfile.TemporaryDirectory(dir=self._scratch) as out:
                plan = planner.plan(from_flat(self._given), out)
                moments = watch([sys.executable, *command, out], Path(out))
                if len(list(Path(out, "parts").iterdir())) != plan.shards:
                    raise SystemExit(f"{name} left shards undone")
            first = next(moment for moment in moments if moment.parts)
            last = next(moment for moment in moments if moment.parts >= plan.shards - 1)
            images = (last.parts - first.parts) * SHARD
            self.cpu_ms.setdefault(name, []).append((last.cpu_s - first.cpu_s) / images * 1000)
            if name.startswith("supervised"):
                self.supervisor.append((last.first_cpu_s - first.first_cpu_s) / (last.cpu_s - first.cpu_s))
            return images / (last.at_s - first.at_s)

        return run


def journal_us() -> float:
    """Microseconds that a batch's two entries in the journal take."""
    journal, times = Journal(), 100_000
    begun = time.perf_counter()
    for start in range(times):
        journal.enter(start, 32)
        journal.leave(start)
    return (time.perf_counter() - begun) / times * 1e6


def main() -> None:
    parser = timing.arguments("Measure what supervision and the journal cost.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--images", type=int, default=32 * SHARD, help="of each run (default: %(default)s)")
    parser.add_argument("--bare", metavar="OUT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        return bare(args.bare)
    if args.images < 4 * SHARD:
        raise SystemExit(f"--images {args.images} are too few: use {4 * SHARD} or more, in shards of {SHARD}")
    on = timing.machine()
    with tempfile.TemporaryDirectory(prefix="clipbatch-supervision-") as scratch:
        manifest = Path(scratch, "images.txt")
        write_manifest(small_pool(Path(scratch, "pool")), args.images, manifest)
        contest = Contest(manifest, Path(scratch))
        kinds = {"supervised": ("-m", "clipbatch", "run", "--quiet", "--out"), "bare": (__file__, "--bare")}
        turns = ("supervised", "bare", "bare, again", "supervised, again")
        rates = timing.interleave({turn: contest.runs(turn, *kinds[turn.split(",")[0]]) for turn in turns}, args.rounds)
    cpu = {turn: used[1:] for turn, used in contest.cpu_ms.items()}
    figures: dict[str, dict[str, timing.Spread]] = {}
    for what, found in (("images/s", rates), ("CPU ms an image", cpu)):
        both = {kind: found[kind] + found[f"{kind}, again"] for kind in kinds}
        over, under = ("bare", "supervised") if what == "images/s" else ("supervised", "bare")
        figures[what] = {
            **{kind: timing.spread(values) for kind, values in both.items()},
            "cost": timing.ratios(both[over], both[under]),
            "noise": timing.ratios(found["bare"], found["bare, again"]),
        }
    rows = []
    for (what, spreads), digits in zip(figures.items(), (0, 3), strict=True):
        ratio, noise = spreads["cost"].text(3), spreads["noise"].text(3)
        rows.append((what, *(spreads[kind].text(digits) for kind in kinds), ratio, WANTED, noise))
    share, entries_us = timing.spread([100 * share for share in contest.supervisor]), journal_us()
    header = ("median (min-max)", *kinds, "cost, as a ratio", "wanted", "noise: bare / bare")
    body = (
        f"{args.images:,} pictures of 36 to 60 pixels a side in shards of {SHARD}, 2 in 100 of them bad; "
        f"{args.rounds} rounds of two pairs.\n\n{timing.table(header, rows)}\n\n"
        f"The supervisor itself took {share.text(2)}% of a run's CPU time; a batch's two entries in the journal take "
        f"{entries_us:.1f} microseconds."
    )
    result: dict[str, Any] = {"machine": on, "images": args.images, **figures}
    result |= {"supervisor_percent": share, "journal_us": entries_us}
    timing.finish("What supervision costs", body, EXPECTED, result, args.report)


if __name__ == "__main__":
    main()
