"""What clipbatch's own machinery costs beside the work: Python's lock, freed memory, supervision, processes.

    python benchmarks/overheads.py lock [FOLDER] [--images N] [--rounds N]
    python benchmarks/overheads.py heap [FOLDER] [--models M,M] [--images N] [--rounds N]
    python benchmarks/overheads.py supervision [--images N] [--rounds N]
    python benchmarks/overheads.py workers [FOLDER] [--images N] [--rounds N]

lock: how long each stage holds Python's lock (the GIL) for an image, and so how many images/s one process can hand to
    a GPU. py-spy looks 100 times a second which thread of the stages has it. DALI lets go of it while it decodes, so
    its CPU back end stands for the GPU's. Threads that need no lock only get what the others leave of the cores
    (`lock_held`). Encoding is not in the sum: on a GPU a batch is one launch of a recorded graph, on a CPU Python calls
    each layer. Loading the model is not counted, and there is no supervisor. Beside it, the CPU time of the threads of
    each stage, an upper bound.
heap: the same run with glibc's malloc as it is, and as a worker has it (`clipbatch.heap`), in a process each.
supervision: a run with a supervisor and the journal, and the same stages alone. Small pictures and the embedded model:
    the most images a second that there can be, and so the most messages, journal entries and shards. Both are watched
    from outside; figures count from the first part to the last but one, so no start, no model, and full queues. A round
    is supervised, bare, bare, supervised; the two bare ones of a round, one over the other, show the noise.
workers: whole runs by one worker on one core, two workers with a core each, and one worker with both cores; images/s
    without loading the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import lock_held
import processes
from clipbatch.config import from_flat, models
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.stages import memory
from clipbatch.stages.journal import Journal
from fixtures import about, draw_pool, list_names, photographs
from harness import Benchmark

DEMO = ("--labels", "cifar10", "--model", models.DEMO, "--device", "cpu")
ROUNDS = {"rounds": (3, "that count")}

# lock

LOCK_BATCH = 256


def lock(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Microseconds for an image, by stage, that the lock is held."""
    photos = photographs(args.folder)
    with processes.scratch_folder() as scratch:
        listed = list_names(photos, args.images, scratch / "photos.txt")
        small = lock_held.small_jpegs(photos, 2 * args.images, scratch)
        turns = {
            "held": lambda: lock_held.held_us(listed, args.images, LOCK_BATCH, scratch),
            "cpu": lambda: lock_held.cpu_us(small, LOCK_BATCH, scratch),
        }
        figures = harness.take_turns(turns, args.rounds)
    held, cpu = ({stage: values[kind] for stage, values in figures.items() if kind in values} for kind in turns)
    tables, result = [f"{about(photos, args.rounds)} {args.images} rows, batch {LOCK_BATCH}."], {}
    for name, title, kind in (("held_us", "with the lock, by py-spy", held), ("cpu_us", "of CPU time", cpu)):
        summed = [stage for stage in kind if stage not in lock_held.ASIDE]
        kind["sum"] = [sum(values) for values in zip(*(kind[stage] for stage in summed), strict=True)]
        rows = {
            lock_held.ASIDE.get(stage, stage): kind[stage]
            for stage in (*summed, "sum", *lock_held.ASIDE)
            if stage in kind
        }
        tables.append(harness.spread_table("", {f"microseconds an image {title}": (rows, 0)}))
        total = harness.spread(kind["sum"]).median
        tables.append(f"By that, one process can hand on {1e6 / total:,.0f} images/s." if total else "Too few images.")
        result[name] = harness.spreads(kind)
    return "\n\n".join(tables), result


# heap

WAYS = {"malloc as it is": "as is", "as a worker has it": "kept"}
HEAP_COLUMNS = {"images/s": 1, "CPU ms an image": 2, "of it in the kernel": 2, "peak MiB": 0}


def heap_kept(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """A run with and without `heap.keep_freed`."""
    tables, result = [about(photographs(args.folder), args.rounds)], {}
    for model in args.models.split(","):
        images = args.images or 32 * max(2, min(64, round(64 / models.gflop(model))))

        def contestant(way: str, model: str = model, images: int = images) -> Callable[[], dict[str, float]]:
            command = processes.in_own_process(measured_run, way, model, args.folder, images)
            return lambda: json.loads(processes.run_command(command).output.splitlines()[-1])

        figures = harness.take_turns({name: contestant(way) for name, way in WAYS.items()}, args.rounds)
        columns = {name: (figures[name], digits) for name, digits in HEAP_COLUMNS.items()}
        rates = dict(zip(("as is", "kept"), figures["images/s"].values(), strict=True))
        compared, ratios = harness.compare(rates, {"kept / as is": ">= 1"})
        tables.append(f"{harness.spread_table(f'{model}, {images} images', columns)}\n\n{compared}")
        result[model] = {name: harness.spreads(values) for name, values in figures.items()} | {"ratios": ratios}
    return "\n\n".join(tables), {"models": result}


def measured_run(way: str, model: str, folder: str, images: str) -> None:
    """In a process of its own: print the figures of a run after one that warms up."""
    from contestants import Ours, random_model

    if way == "kept":
        memory.keep_freed()
    count = int(images)
    with processes.scratch_folder() as scratch:
        listed = list_names(photographs(Path(folder)), count, scratch / "photos.txt")
        ours = Ours({**random_model(model, scratch), "inputs": [str(listed)]}, scratch / "run")
        ours.run()
        before = resource.getrusage(resource.RUSAGE_SELF)
        images_per_s = ours.rate(ours.run)()
        after = resource.getrusage(resource.RUSAGE_SELF)
    user_s, kernel_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    costs = (images_per_s, 1000 * (user_s + kernel_s) / count, 1000 * kernel_s / count, after.ru_maxrss / 1024)
    print(json.dumps(dict(zip(HEAP_COLUMNS, costs, strict=True))))


# supervision

SHARD = 1024
TURNS = ("supervised", "bare", "bare again", "supervised again")


def supervision(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What the supervisor and the journal cost."""
    if args.images < 4 * SHARD:
        raise SystemExit(f"--images {args.images} are too few: use {4 * SHARD} or more, in shards of {SHARD}")
    with processes.scratch_folder() as scratch:
        listed = list_names(draw_pool(scratch / "pool", (36, 61)), args.images, scratch / "images.txt")
        turns = {turn: lambda turn=turn: watched_run(listed, scratch, "bare" in turn) for turn in TURNS}
        figures = harness.take_turns(turns, args.rounds)
    share = harness.spread([value for turn in TURNS if "bare" not in turn for value in figures["supervisor, %"][turn]])
    rates, cpu_ms = (pooled(figures[name]) for name in ("images/s", "CPU ms an image"))
    noise = {"first bare / second bare": "noise"}
    compared, ratios = harness.compare(rates, {"bare / supervised": "<= 1.02", **noise})
    cost, costs = harness.compare(cpu_ms, {"supervised / bare": "<= 1.02", **noise})
    body = (
        f"{args.images:,} pictures of 36 to 60 pixels a side in shards of {SHARD}, 2 in 100 of them bad; "
        f"{args.rounds} rounds of two pairs.\n\n"
        f"{harness.spread_table('', {'images/s': (rates, 0), 'CPU ms an image': (cpu_ms, 3)})}\n\n"
        f"Of images/s:\n\n{compared}\n\nOf CPU time:\n\n{cost}\n\n"
        f"The supervisor itself took {share.text(2)}% of a run's CPU time; a batch's two entries in the journal take "
        f"{journal_us():.1f} microseconds."
    )
    result = {"images_per_s": harness.spreads(rates), "cpu_ms": harness.spreads(cpu_ms), "cost": ratios}
    return body, result | {"cpu_cost": costs, "supervisor_percent": share}


def pooled(figures: harness.Figures) -> harness.Figures:
    """The two pairs of each round as rounds of their own, and the bare ones apart."""
    supervised, bare, again, last = (figures[turn] for turn in TURNS)
    return {"supervised": supervised + last, "bare": bare + again, "first bare": bare, "second bare": again}


def watched_run(listed: Path, scratch: Path, bare: bool) -> dict[str, float]:
    """The figures of a run in steady state. bare: its stages alone."""
    settings = {"inputs": [str(listed)], "labels": "cifar10", "model": models.DEMO, "device": "cpu"}
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        plan = planner.plan(from_flat({**settings, "shard_size": SHARD}), out)
        run = processes.clipbatch_command("run", "--quiet", "--out", out)
        command = processes.in_own_process(bare_run, out) if bare else run

        def look(pid: int, age_s: float) -> tuple[int, float, float, float]:
            parts = len(list(Path(out).glob("parts/part-*.parquet")))
            return parts, age_s, processes.cpu_s(pid), sum(map(processes.cpu_s, processes.children(pid)))

        moments = processes.watch(command, 0.05, look)
        if len(list(Path(out, "parts").iterdir())) != plan.shards:
            raise SystemExit(f"{command} left shards undone")
    first = next(moment for moment in moments if moment[0])
    last = next(moment for moment in moments if moment[0] >= plan.shards - 1)
    parts, seconds, own_s, theirs_s = (after - before for before, after in zip(first, last, strict=True))
    images, total_s = parts * SHARD, own_s + theirs_s
    figures = {"images/s": images / seconds, "CPU ms an image": 1000 * total_s / images}
    return figures if bare else {**figures, "supervisor, %": 100 * own_s / total_s}


def bare_run(out: str) -> None:
    """In a process of its own: all shards of the planned run in `out` by its stages alone, with no journal."""
    from clipbatch.stages.pipeline import ShardPipeline, Task
    from contestants import NoJournal

    run = RunDir(out)
    run.make_parts()
    plan = run.plan()
    worker = ShardPipeline(run, plan.fingerprint, "cpu", {}, NoJournal())
    for _ in worker.label(Task(shard=shard) for shard in range(plan.shards)):
        pass


def journal_us() -> float:
    """Microseconds that a batch's two entries in the journal take."""
    journal, times = Journal(), 100_000
    begun = time.perf_counter()
    for start in range(times):
        journal.enter(start, 32)
        journal.leave(start)
    return (time.perf_counter() - begun) / times * 1e6


# workers


def workers(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Two CPU workers beside one."""
    photos, cores = photographs(args.folder), sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("this machine has one core, and two workers want a core each")
    contestants = {"one worker": (cores[:1], 1), "two workers": (cores, 2), "one worker with two cores": (cores, 1)}
    with processes.scratch_folder() as scratch:
        listed = list_names(photos, args.images, scratch / "photos.txt")

        def images_per_s(some: list[int], count: int) -> float:
            with tempfile.TemporaryDirectory(dir=scratch) as out:
                options = (*DEMO, "--shard-size", 256, "--workers", count, "--out", f"{out}/run")
                report, _ = processes.run_report("run", listed, *options, cores=set(some))
                return float(report["this_run"]["images_per_s"])

        turns = {name: lambda how=how: images_per_s(*how) for name, how in contestants.items()}
        rates = harness.interleave(turns, args.rounds)
    wanted = {"two workers / one worker": ">= 1.8", "one worker with two cores / one worker": ""}
    compared, ratios = harness.compare(rates, wanted)
    body = f"{about(photos, args.rounds)} {args.images} images in a round; a core for each worker.\n\n"
    body += f"{harness.spread_table('', {'images/s': (rates, 0)})}\n\n{compared}"
    return body, {"images_per_s": harness.spreads(rates), "ratios": ratios}


BENCHMARKS = {
    "lock": Benchmark(
        title="How long Python's lock is held",
        expected="at most 60 microseconds an image with DALI, so that one process can hand more than 16,000 images/s "
        "to a GPU; decoding takes most of it, for the header of each image and its place in the batch.",
        measure=lock,
        folder=True,
        options={"images": (8192, "rows of the run"), **ROUNDS},
    ),
    "heap": Benchmark(
        title="Keeping freed memory",
        expected="the larger a model's activations, the more is gained: up to a sixth with ViT-B-16, whose largest "
        "take 77 MB a batch; some with small models, too, since whole images are freed and allocated again. Peak "
        "memory grows somewhat.",
        measure=heap_kept,
        folder=True,
        options={
            "models": ("clipbatch-demo,ViT-B-32,ViT-B-16", "with random weights"),
            "images": (0, "rows of a run; 0 for some ten seconds of work"),
            **ROUNDS,
        },
    ),
    "supervision": Benchmark(
        title="What supervision costs",
        expected="bare / supervised at most 1.02 in images/s, in the median. The supervisor sleeps between messages, "
        "of which there are ten a second at most and two more for each part; an entry of the journal is 16 bytes "
        "written to memory.",
        measure=supervision,
        options={"images": (32 * SHARD, "of each run"), "rounds": (6, "that count")},
    ),
    "workers": Benchmark(
        title="Two CPU workers beside one",
        expected="two workers, a core each, are at least 1.8 times as fast as one; the ceiling is 2.",
        measure=workers,
        folder=True,
        options={"images": (12_800, "rows of a run"), "rounds": (5, "that count")},
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
