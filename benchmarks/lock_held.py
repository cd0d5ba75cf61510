"""How long the stages of a run hold Python's lock for an image, for `overheads.py lock`, in two ways.

py-spy looks which thread has the lock. A thread that has it and waits for a core would look as if it held the lock for
longer. So the threads that need no lock (DALI's, torch's) only get what the others leave of the cores: a machine with
GPUs has cores enough for both. The CPU time of the threads of each stage is an upper bound, since system calls, page
faults and copies of pixels need no lock. For that, small JPEGs are read, so that copying their bytes counts for little.
Both are high where other work shares the machine. DALI decodes in threads of its own, which are not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import processes
from clipbatch.config import from_flat, models
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from fixtures import list_names

# How often py-spy looks.
HZ = 100
STAGES = ("list", "read", "decode", "score", "write")
ASIDE = {"encode": "encode (this model, on a CPU; not in the sum)"}
_THREAD = re.compile(r"thread \(\w+\): ([a-z]+)-\d+")
# Of the small JPEGs, pixels.
SIDE = 160
# The stage of a thread, by the first word of its name.
OF_THREAD = {"read": "list, read", "reader": "list, read", "decode": "decode", "score": "score", "write": "write"}


def small_jpegs(photos: Sequence[Path], images: int, scratch: Path) -> Path:
    """A list of `images` names over small copies of `photos`."""
    folder = scratch / "small"
    folder.mkdir(exist_ok=True)
    copies = [folder / f"{number:04d}.jpg" for number in range(len(photos))]
    for photo, copy in zip(photos, copies, strict=True):
        with Image.open(photo) as image:
            small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        small.save(copy, "JPEG", quality=90)
    return list_names(copies, images, scratch / "small.txt")


def cpu_us(listed: Path, batch_size: int, scratch: Path) -> dict[str, float]:
    """Microseconds of CPU time an image, by stage, from an eighth to the half of a run in a process of its own."""
    command = processes.in_own_process(print_cpu, str(_planned(listed, batch_size, scratch)))
    figures: dict[str, float] = json.loads(processes.run_command(command).output.splitlines()[-1])
    return figures


def _planned(listed: Path, batch_size: int, scratch: Path) -> Path:
    out = Path(tempfile.mkdtemp(dir=scratch), "run")
    settings = {"inputs": [str(listed)], "labels": "cifar10", "model": models.DEMO, "device": "cpu"}
    planner.plan(from_flat({**settings, "decoder": "dali", "batch_size": batch_size}), out)
    return out


def print_cpu(out: str) -> None:
    """In a process of its own: do the planned run in `out` by its stages alone."""
    from clipbatch.stages.pipeline import ShardPipeline, Task
    from contestants import NoJournal

    run = RunDir(out)
    run.make_parts()
    plan = run.plan()
    worker = ShardPipeline(run, plan.fingerprint, "cpu", {}, NoJournal())
    threading.Thread(target=_yield_cores, name="yielding", daemon=True).start()
    rows, moments, spent = 0, list[tuple[int, Counter[str]]](), dict[int, tuple[str, int]]()
    for written in worker.label(Task(shard=shard) for shard in range(plan.shards)):
        rows += written.rows
        spent |= _cpu_ns()  # of threads that have ended, the last figure stays
        if plan.rows / 8 <= rows <= plan.rows / 2:  # after that, all may have been read
            sums = Counter[str]()
            for stage, ns in spent.values():
                sums[stage] += ns
            moments.append((rows, sums))
    (first_row, before), (last_row, after) = moments[0], moments[-1]
    images = max(1, last_row - first_row)
    print(
        json.dumps({stage: (after[stage] - before[stage]) / 1000 / images for stage in sorted(set(OF_THREAD.values()))})
    )


def _cpu_ns() -> dict[int, tuple[str, int]]:
    """For each thread of a stage, the stage and its CPU time so far, nanoseconds."""
    return {
        thread.ident: (stage, time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident)))
        for thread in threading.enumerate()
        if thread.ident and (stage := OF_THREAD.get(thread.name.partition("-")[0]))
    }


def _yield_cores() -> None:
    """Again and again, give all threads that are not Python's the lowest priority. Source: sched(7), SCHED_IDLE."""
    while True:
        python = {thread.native_id for thread in threading.enumerate()}
        for task in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(task, os.SCHED_OTHER if task in python else os.SCHED_IDLE, os.sched_param(0))
        time.sleep(0.05)


def held_us(listed: Path, images: int, batch_size: int, scratch: Path) -> dict[str, float]:
    """Microseconds an image for which each stage has the lock, as py-spy sees it, in a process of its own."""
    samples = scratch / "samples"
    spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--gil", "--threads", "--rate", str(HZ)]
    spy += ["--format", "raw", "--output", str(samples), "--"]
    processes.run_command([*spy, *processes.in_own_process(print_cpu, str(_planned(listed, batch_size, scratch)))])
    counts = Counter[str]()
    for line in samples.read_text().splitlines():
        stack, count = line.rsplit(" ", 1)
        counts[stage_of(stack)] += int(count)
    return {stage: counts[stage] / HZ / images * 1e6 for stage in (*STAGES, *ASIDE)}


def stage_of(stack: str) -> str:
    """Which stage the frames of a sample belong to: `not counted` for loading and for the benchmark's own thread."""
    thread = _THREAD.search(stack)
    loading = ("_find_and_load", "__init__ (clipbatch/stages/pipeline.py")
    if any(name in stack for name in loading):
        return "not counted"
    if "item_batches (" in stack:
        return "list"
    if thread and thread[1] in (*STAGES, *ASIDE):
        return thread[1]
    if "_Reader" in stack or "read/" in stack:
        return "read"
    return "decode" if "decode/" in stack else "not counted"
