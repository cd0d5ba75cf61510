"""How the work spreads: shards over 1 to 512 workers, in simulated time; and what a billion images would take.

    python benchmarks/scaling.py workers [--seeds N]
    python benchmarks/scaling.py ranks [--seeds N]
    python benchmarks/scaling.py billion [--images N] [--rows N] [--rounds N]

workers: the real code hands out shards to workers that are simulated. A shard takes a time drawn from a lognormal
    distribution, one try in 100 is a straggler that takes ten times as long, one in 1000 dies half-way, and a worker
    loads its model before it begins and after it has died. `handout.Handout` decides who does what, as it does for the
    supervisor and for any engine above it; `ranks.Rank.part` decides for static ranks, where each process does a fixed
    part of the shards. Efficiency is the ideal over what it took. Ideal: the first tries of all shards, stragglers
    included, spread evenly over workers that neither load nor die. A report comes with a plot.
ranks: the same cluster, of processes that share nothing but the folder of parts, as the tasks of a Slurm array do. The
    real code (`ranks.Rank`) decides which shards are a rank's own and in which order it takes open shards of the others
    (`helping.Helper` does the same with real parts). A rank asks whether a part exists when it starts a shard, and each
    10 s when it has nothing else left. Efficiency as above; "busy" is the ideal over all the time of all ranks until
    they have ended.
billion: measured here are planning (time and bytes a row of the manifest), parts (bytes a row), and listing a folder of
    parts. Computed, and named so: the number of parts, and GPU-hours from the ceiling of an H200 at 989 dense TFLOP/s
    of FP16, which no run reaches; where decoding or reading is slower than that, it decides.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

import harness
from clipbatch.config import models
from clipbatch.config.auto import one_minute_shard_size
from clipbatch.rundir.layout import RunDir, part_name
from clipbatch.workers.ranks import Rank
from clipbatch.workers.scheduler import Assignment, ShardScheduler
from clipbatch.workers.supervisor import LOOK_S
from harness import Benchmark
from processes import run_clipbatch, scratch_folder

# workers

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
MODEL = (
    f"Simulated: {SHARDS} shards, lognormal with median {MEDIAN_S:g} s and sigma {SIGMA:g}; {STRAGGLERS:.0%} of tries "
    f"{SLOWER:g} times slower; {DEATHS:.1%} of tries die half-way; {LOAD_S:g} s to load a model."
)


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
        number = self._tries[shard]
        self._tries[shard] += 1
        return self._draw(shard, number)

    def ideal_s(self, workers: int) -> float:
        return sum(self._draw(shard, 0).takes_s for shard in range(SHARDS)) / workers

    def _draw(self, shard: int, number: int) -> Try:
        dice = random.Random(f"{self._seed} {shard} {number}")
        takes_s = dice.lognormvariate(math.log(MEDIAN_S), SIGMA)
        return Try(takes_s=takes_s * (SLOWER if dice.random() < STRAGGLERS else 1.0), dies=dice.random() < DEATHS)


def handed_out(workers: int, seed: int) -> tuple[float, float, int]:
    """Seconds until every part is there, microseconds that the real code took for a shard, and tries for nothing."""
    cluster, handout = Cluster(seed), ShardScheduler(Assignment(shard=shard) for shard in range(SHARDS))
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
                handout.requeue(handout.remove_worker(worker))
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
            task = handout.next_for(worker, now)
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


def helping(ranks: int, seed: int) -> tuple[float, float, int]:
    """Seconds until every part is there, rank-seconds until all ranks have ended, and shards that were done twice."""
    cluster, done = Cluster(seed), set[int]()
    orders = [
        iter([*rank.part(range(SHARDS)), *rank.others(range(SHARDS))])
        for rank in (Rank(number=number, world=ranks) for number in range(ranks))
    ]
    events = [(LOAD_S, rank, -1, False) for rank in range(ranks)]
    finished_s, twice = 0.0, 0
    total_s = [0.0] * ranks
    while events:
        now, rank, shard, dies = heapq.heappop(events)
        total_s[rank] = now if shard < 0 or not finished_s else min(now, finished_s + LOOK_S)
        if shard >= 0 and not dies:
            twice += shard in done
            done.add(shard)
            if len(done) == SHARDS and not finished_s:
                finished_s = now
        if len(done) == SHARDS:
            continue
        wanted = shard if dies and shard not in done else next((s for s in orders[rank] if s not in done), None)
        if wanted is not None:
            attempt = cluster.attempt(wanted)
            begin = now + (LOAD_S if dies else 0.0)
            takes_s = attempt.takes_s / 2 if attempt.dies else attempt.takes_s
            heapq.heappush(events, (begin + takes_s, rank, wanted, attempt.dies))
    return finished_s, sum(total_s), twice


def ranks(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Efficiency of ranks with fixed parts, and of ranks that help each other."""
    rows, result = [], {}
    for count in WORKERS[1:]:
        ideals = [Cluster(seed).ideal_s(count) for seed in range(args.seeds)]
        runs = [helping(count, seed) for seed in range(args.seeds)]
        figures = {
            "fixed parts": [ideal / static(count, seed) for seed, ideal in enumerate(ideals)],
            "helping": [ideal / seconds for ideal, (seconds, _, _) in zip(ideals, runs, strict=True)],
            "busy": [count * ideal / seconds for ideal, (_, seconds, _) in zip(ideals, runs, strict=True)],
        }
        twice = harness.spread([float(run[2]) for run in runs])
        result[str(count)] = {**harness.spreads(figures), "done_twice": twice}
        shown = [harness.spread(values).text(3) for values in figures.values()]
        rows.append([str(count), f"{harness.spread(ideals).median / 60:.0f} min", *shown, twice.text()])
    header = ("ranks", "ideal", "fixed parts", "helping", "busy, helping", "shards done twice")
    body = f"{MODEL} Median (min-max) of {args.seeds} simulations; the ceiling is 1.\n\n{harness.table(header, rows)}"
    return body, result


def plot(figures: dict[int, dict[str, list[float]]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, style in (("handed out", "o-"), ("static ranks", "s--")):
        runs = [figures[workers][name] for workers in WORKERS]
        axes.plot(WORKERS, [harness.spread(values).median for values in runs], style, label=name)
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


def workers(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Efficiency by the number of workers."""
    figures: dict[int, harness.Figures] = {}
    rows, result = [], {}
    for count in WORKERS:
        ideals = [Cluster(seed).ideal_s(count) for seed in range(args.seeds)]
        runs = [handed_out(count, seed) for seed in range(args.seeds)]
        efficiency = [ideal / seconds for ideal, (seconds, _, _) in zip(ideals, runs, strict=True)]
        fixed = [ideal / static(count, seed) for seed, ideal in enumerate(ideals)]
        figures[count] = {"handed out": efficiency, "static ranks": fixed}
        code_us, twice = (harness.spread([float(run[at]) for run in runs]) for at in (1, 2))
        result[str(count)] = {**harness.spreads(figures[count]), "code_us": code_us, "done_twice": twice}
        shown = [harness.spread(values).text(3) for values in figures[count].values()]
        ideal_h = harness.spread(ideals).median / 3600
        rows.append([str(count), f"{ideal_h:.2f} h", *shown, twice.text(), code_us.text(1)])
    header = ("workers", "ideal", "handed out", "static ranks", "shards done twice", "code, us a shard")
    body = f"{MODEL} Median (min-max) of {args.seeds} simulations; the ceiling is 1.\n\n{harness.table(header, rows)}"
    if args.report:
        picture = args.report.with_suffix(".png")
        args.report.parent.mkdir(parents=True, exist_ok=True)
        plot(figures, picture)
        body += f"\n\n![efficiency]({picture.name})"
    return body, result


# billion

IMAGES = 10**9
TFLOPS = 989
GPU_BATCH = 256
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14")
FILE_KB = 110
"""Of a photograph, for the bytes that are read."""


def billion(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Constants that are measured, and the arithmetic on them."""
    with scratch_folder() as scratch:
        turns = {"plan": lambda: planning(scratch, args.rows)}
        measured = {name: harness.spread(v["plan"]) for name, v in harness.take_turns(turns, args.rounds).items()}
        images = draw(scratch / "images", args.images)
        part_bytes = size_of_parts(images, scratch / "all", args.images)
        top_bytes = size_of_parts(images, scratch / "top", args.images, "--top-k", "5")
        measured["listing us"] = listing = harness.spread(listing_us(scratch, 10_000))
    plan_us, row_bytes = measured["us a row"], measured["bytes a row"]
    constants = [
        ["planning, us a row", plan_us.text(2), f"{plan_us.median * IMAGES / 3.6e9:.1f} h, once"],
        ["manifest, bytes a row", row_bytes.text(1), f"{row_bytes.median:.0f} GB"],
        ["parts with 27 scores, bytes a row", f"{part_bytes:.0f}", f"{part_bytes:.0f} GB"],
        ["parts with --top-k 5", f"{top_bytes:.0f}", f"{top_bytes:.0f} GB"],
        ["listing, us a part", listing.text(2), ""],
        [f"images of {FILE_KB} kB, assumed", "", f"{FILE_KB} TB to be read"],
    ]
    computed = []
    for model in MODELS:
        gflop = models.gflop(model)
        size = one_minute_shard_size(True, gflop, "fp16", GPU_BATCH)
        parts, rate = -(-IMAGES // size), TFLOPS * 1e3 / gflop
        seen = (f"{listing.median * parts / 1e3:.0f} ms", f"{part_bytes * size / 1e6:.0f} MB")
        computed.append([model, str(size), str(parts), *seen, f"{rate:.0f}", f"{IMAGES / rate / 3600:.1f}"])
    header = ("model", "shard, rows", "parts", "listing", "a part", "images/s, ceiling", "GPU-hours")
    body = (
        f"Measured on a plan of {args.rows} rows and parts of {args.images}; what {IMAGES:,} images make:\n\n"
        f"{harness.table(('what', 'measured', 'for a billion'), constants)}\n\nComputed, not measured:\n\n"
        f"{harness.table(header, computed)}"
    )
    return body, {**measured, "part_bytes": part_bytes, "part_bytes_top_5": top_bytes}


def planning(folder: Path, rows: int) -> dict[str, float]:
    """Microseconds and bytes a row of a plan, from a text manifest with names as photo archives have them."""
    with (folder / "names.txt").open("w") as file:
        for number in range(rows):
            digest = f"{number * 2654435761 % 2**32:08x}"
            file.write(f"/data/photos/{digest[:2]}/{digest[2:4]}/IMG_{number:09d}_{digest}.jpg\n")
    options = ("--labels", "documents-27", "--model", "ViT-B-32", "--device", "cpu", "--shard-size", 2**16)
    command = ("plan", folder / "names.txt", *options, "--overwrite", "--out", folder / "plan")
    seconds = run_clipbatch(*command).wall_s - run_clipbatch("--version").wall_s
    size = sum(path.stat().st_size for path in (folder / "plan" / "manifest").iterdir())
    return {"us a row": 1e6 * seconds / rows, "bytes a row": size / rows}


def draw(folder: Path, count: int) -> Path:
    """A folder of `count` images that are all different, as scores that repeat would compress too well."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        coarse.save(folder / f"IMG_{number:09d}_{rng.integers(2**32):08x}.jpg", quality=80)
    return folder


def size_of_parts(images: Path, out: Path, count: int, *more: str) -> float:
    """Bytes that a row takes in a part of `count` rows."""
    settings = ("--labels", "documents-27", "--model", models.DEMO, "--device", "cpu", "--shard-size", 2**15)
    run_clipbatch("run", images, *settings, *more, "--out", out, "--quiet")
    return sum(path.stat().st_size for path in (out / "parts").iterdir()) / count


def listing_us(folder: Path, parts: int) -> list[float]:
    """Microseconds a part to find out what is done, over five tries."""
    (folder / "done" / "parts").mkdir(parents=True)
    plan = RunDir(folder / "plan").plan()
    for number in range(plan.shards):
        (folder / "done" / "parts" / part_name(number, plan.shards)).touch()
    for number in range(plan.shards, parts):
        (folder / "done" / "parts" / f"more-{number}").touch()
    tries = []
    for _ in range(5):
        begun = time.perf_counter()
        assert len(RunDir(folder / "done").done(plan)) == plan.shards
        tries.append(1e6 * (time.perf_counter() - begun) / parts)
    return tries


BENCHMARKS = {
    "workers": Benchmark(
        title="How shards spread over workers (simulation)",
        expected="at least 0.95 at 64 workers and 0.9 at 512, where shards are handed out; static ranks lose at the "
        "end what their slowest rank meets in stragglers, so an array should have several times more tasks than it has "
        "devices.",
        measure=workers,
        options={"seeds": (10, "simulations of each size")},
    ),
    "ranks": Benchmark(
        title="How shards spread over ranks that share only a folder (simulation)",
        expected="about 0.98 at 64 ranks and at least 0.86 at 512, where each helps the others after its own part.",
        measure=ranks,
        options={"seeds": (10, "simulations of each size")},
    ),
    "billion": Benchmark(
        title="The plan for a billion images",
        expected=f"GPU-hours are a floor: {TFLOPS} TFLOP/s are a data sheet's, and ViT-B-32 is bound by decoding and "
        "reading long before. The listing is what a process pays to find out what is done.",
        measure=billion,
        options={
            "images": (10_000, "in the part that is measured"),
            "rows": (1_000_000, "of the plan that is measured"),
            "rounds": (3, "that count"),
        },
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
