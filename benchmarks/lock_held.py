"""How long the stages of a run hold Python's lock for an image, for `overheads.py lock`, in two ways.

py-spy looks which thread has the lock. Where cores are few or busy, a thread that has it may be without a core, so that
is an upper bound. The CPU time of the threads of each stage is another one, since system calls, page faults and copies
of pixels need no lock. For that, small JPEGs are read, so that copying their bytes counts for little. Both are high
where other work shares the machine. DALI decodes in threads of its own, which are not counted.
"""

from __future__ import annotations

import json
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
ASIDE = {
    "encode": "encode (this model, on a CPU; not in the sum)",
    "messages": "messages (five a second; not in the sum)",
}
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
    """Microseconds of CPU time an image, by stage, in the middle half of a run in a process of its own."""
    out = Path(tempfile.mkdtemp(dir=scratch), "run")
    settings = {"inputs": [str(listed)], "labels": "cifar10", "model": models.DEMO, "device": "cpu"}
    planner.plan(from_flat({**settings, "decoder": "dali", "batch_size": batch_size}), out)
    command = processes.in_own_process(print_cpu, str(out))
    figures: dict[str, float] = json.loads(processes.run_command(command).output.splitlines()[-1])
    return figures


def print_cpu(out: str) -> None:
    """In a process of its own: do the planned run in `out` by its stages alone."""
    from clipbatch.stages.pipeline import ShardPipeline, Task
    from contestants import NoJournal

    run = RunDir(out)
    run.make_parts()
    plan = run.plan()
    worker = ShardPipeline(run, plan.fingerprint, "cpu", {}, NoJournal())
    rows, moments = 0, list[tuple[int, Counter[str]]]()
    for written in worker.label(Task(shard=shard) for shard in range(plan.shards)):
        rows += written.rows
        if plan.rows / 4 <= rows <= plan.rows * 3 / 4:
            moments.append((rows, _cpu_ns()))
    (first_row, before), (last_row, after) = moments[0], moments[-1]
    images = max(1, last_row - first_row)
    print(
        json.dumps({stage: (after[stage] - before[stage]) / 1000 / images for stage in sorted(set(OF_THREAD.values()))})
    )


def _cpu_ns() -> Counter[str]:
    """CPU time so far of the threads of each stage, nanoseconds."""
    spent = Counter[str]()
    for thread in threading.enumerate():
        stage = OF_THREAD.get(thread.name.partition("-")[0])
        if stage and thread.ident:
            spent[stage] += time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
    return spent


def held_us(listed: Path, images: int, batch_size: int, scratch: Path) -> dict[str, float]:
    """Microseconds an image for which each stage has the lock, as py-spy sees it, in a run of its own."""
    samples = scratch / "samples"
    out = tempfile.mkdtemp(dir=scratch)
    options = ("--decoder", "dali", "--batch-size", batch_size, "--quiet", "--out", Path(out, "run"))
    spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--gil", "--subprocesses", "--threads"]
    spy += ["--rate", str(HZ), "--format", "raw", "--output", str(samples), "--"]
    demo = ("--labels", "cifar10", "--model", models.DEMO, "--device", "cpu")
    processes.run_command([*spy, *processes.clipbatch_command("run", listed, *demo, *options)])
    counts = Counter[str]()
    for line in samples.read_text().splitlines():
        stack, count = line.rsplit(" ", 1)
        counts[stage_of(stack)] += int(count)
    return {stage: counts[stage] / HZ / images * 1e6 for stage in (*STAGES, *ASIDE)}


def stage_of(stack: str) -> str:
    """Which stage the frames of a sample belong to: `not counted` for the supervisor, and for loading."""
    thread = _THREAD.search(stack)
    loading = ("_find_and_load", "__init__ (clipbatch/stages/pipeline.py")
    if "clipbatch.workers.worker_main" not in stack or any(name in stack for name in loading):
        return "not counted"
    if "item_batches (" in stack:
        return "list"
    if thread and thread[1] in (*STAGES, *ASIDE):
        return thread[1]
    if "_Reader" in stack or "read/" in stack:
        return "read"
    if "decode/" in stack:
        return "decode"
    return "messages" if "execute (" in stack or "Thread.run" in stack else "not counted"
