"""How well do shards spread over 1, 8, 64 and 512 workers? The real code that hands them out, in simulated time.

    python benchmarks/scaling.py [--report FILE.md]        with a plot beside the report; needs matplotlib

What is simulated is the workers alone: a shard takes a time drawn from a lognormal distribution, one try in 100 is a
straggler that takes ten times as long, one in 1000 dies on the way, and a worker loads its model before it begins and
after it has died. `handout.Handout` decides who does what, as it does for the supervisor and for any engine above it;
`ranks.Rank.part` decides for static ranks, where each process does a fixed part of the shards.

Efficiency is the ideal over what it took. Ideal: the first tries of all shards, stragglers included, spread evenly over
workers that neither load nor die.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbatch.workers.ranks import Rank
from clipbatch.workers.scheduler import Assignment, Handout
from harness import arguments, finish, machine, spread, table

SHARDS = 10_000
WORKERS = (1, 8, 64, 512)
MEDIAN_S = 60.0
"""A shard is about a minute of work."""
SIGMA = 0.25
STRAGGLERS, SLOWER = 0.01, 10.0
DEATHS = 0.001
LOAD_S = 20.0
POLL_S = 1.0
"""How often the supervisor looks again whether an idle worker is to help another (`launch`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One worker's attempt at a shard."""

    takes_s: float
    dies: bool


class Cluster:
    """Draws tries, so that the first try of a shard is the same whoever makes it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tries = [0] * SHARDS

    def attempt(self, shard: int) -> Try:
        made = self._draw(shard, self._tries[shard])
        self._tries[shard] += 1
        return made

    def ideal_s(self, workers: int) -> float:
        return sum(self._draw(shard, 0).takes_s for shard in range(SHARDS)) / workers

    def _draw(self, shard: int, number: int) -> Try:
        dice = random.Random(f"{self._seed} {shard} {number}")
        takes_s = dice.lognormvariate(math.log(MEDIAN_S), SIGMA)
        return Try(takes_s=takes_s * (SLOWER if dice.random() < STRAGGLERS else 1.0), dies=dice.random() < DEATHS)


def handed_out(workers: int, seed: int) -> tuple[float, float, int]:
    """Seconds until every part is there, microseconds that the real code took for a shard, and tries for nothing."""
    cluster, handout = Cluster(seed), Handout(Assignment(shard=shard) for shard in range(SHARDS))
    events: list[tuple[float, int, int, str]] = [(LOAD_S, worker, -1, "idle") for worker in range(workers)]
    idle: set[int] = set()
    now = code_s = 0.0
    next_look = LOAD_S
    waste = 0
    while not handout.complete:
        if events and not (idle and next_look < events[0][0]):
            now, worker, shard, what = heapq.heappop(events)
            begun = time.perf_counter()
            if what == "died":
                handout.put_back(handout.lost(worker))
                heapq.heappush(events, (now + LOAD_S, worker, -1, "idle"))
                asking: set[int] = set()
            else:
                if what == "done" and not handout.done(worker, shard, now):
                    waste += 1
                asking = {worker}
        else:
            now = next_look
            asking, begun = set(idle), time.perf_counter()
        if now >= next_look:
            next_look = now + POLL_S
        for worker in sorted(asking):
            task = handout.take(worker, now)
            if task is None:
                idle |= asking  # whoever is idle gets the same answer
                break
            idle.discard(worker)
            asking = asking - {worker}
            attempt = cluster.attempt(task.shard)
            after_s, what = (attempt.takes_s / 2, "died") if attempt.dies else (attempt.takes_s, "done")
            heapq.heappush(events, (now + after_s, worker, task.shard, what))
        code_s += time.perf_counter() - begun
    return now, 1e6 * code_s / SHARDS, waste


def static(workers: int, seed: int) -> float:
    """Seconds until every rank has done its part."""
    cluster = Cluster(seed)
    longest_s = 0.0
    for number in range(workers):
        takes_s = LOAD_S
        for shard in Rank(number=number, world=workers).part(range(SHARDS)):
            while (attempt := cluster.attempt(shard)).dies:
                takes_s += attempt.takes_s / 2 + LOAD_S
            takes_s += attempt.takes_s
        longest_s = max(longest_s, takes_s)
    return longest_s


def plot(figures: dict[int, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, style in (("handed out", "o-"), ("static ranks", "s--")):
        runs = [figures[workers][name] for workers in WORKERS]
        axes.plot(WORKERS, [spread(values).median for values in runs], style, label=name)
        axes.fill_between(WORKERS, [min(values) for values in runs], [max(values) for values in runs], alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(workers) for workers in WORKERS])
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("workers")
    axes.set_ylabel("efficiency: ideal time / time taken")
    axes.set_title(f"{SHARDS:,} shards, 1% stragglers, 0.1% deaths (simulated time)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="simulations of each size")
    options = parser.parse_args()
    on = machine()
    figures: dict[int, dict[str, list[float]]] = {}
    rows: list[list[str]] = []
    result: dict[str, Any] = {"machine": on}
    for workers in WORKERS:
        ideals = [Cluster(seed).ideal_s(workers) for seed in range(options.seeds)]
        runs = [handed_out(workers, seed) for seed in range(options.seeds)]
        efficiency = [ideal / run[0] for ideal, run in zip(ideals, runs, strict=True)]
        fixed = [ideal / static(workers, seed) for seed, ideal in enumerate(ideals)]
        figures[workers] = {"handed out": efficiency, "static ranks": fixed}
        found = {"handed_out": spread(efficiency), "static": spread(fixed), "code_us": spread([run[1] for run in runs])}
        result[str(workers)] = found
        rows.append(
            [
                str(workers),
                f"{spread(ideals).median / 3600:.2f} h",
                found["handed_out"].text(3),
                found["static"].text(3),
                spread([float(run[2]) for run in runs]).text(),
                found["code_us"].text(1),
            ]
        )
    header = ("workers", "ideal", "handed out", "static ranks", "shards done twice", "code, us a shard")
    body = (
        f"Simulated: {SHARDS} shards, lognormal with median {MEDIAN_S:g} s and sigma {SIGMA:g}; {STRAGGLERS:.0%} of "
        f"tries {SLOWER:g} times slower; {DEATHS:.1%} of tries die half-way; {LOAD_S:g} s to load a model. Median "
        f"(lowest-highest) of {options.seeds} simulations.\n\n{table(header, rows)}"
    )
    if options.report:
        picture = options.report.with_suffix(".png")
        options.report.parent.mkdir(parents=True, exist_ok=True)
        plot(figures, picture)
        body += f"\n\n![efficiency]({picture.name})"
    expected = (
        "at least 0.95 at 64 workers and 0.9 at 512, where shards are handed out; static ranks lose at the end what "
        "their slowest rank meets in stragglers, so an array should have several times more tasks than it has devices."
    )
    finish("How shards spread over workers (simulation)", body, expected, result, options.report)


if __name__ == "__main__":
    main()
