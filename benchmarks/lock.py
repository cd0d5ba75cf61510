"""How long Python's lock is held for each image, by stage: how many images/s one worker process can do at most.

    python benchmarks/lock.py [FOLDER] [--images N] [--report PATH]

One thread at a time holds the lock (the GIL), and whatever a GPU does, Python's part of each image waits for it. py-spy
looks 250 times a second which thread of a run's worker has it. DALI lets go of it while it decodes, so its CPU back end
stands for the GPU's here; but where cores are few, a thread that has the lock may be without a core, so the figures are
upper bounds. Encoding is left out of the sum: on a GPU a batch is one launch of a recorded graph, on a CPU Python calls
each layer. Loading the model is left out, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import harness as timing
from contestants import DEMO_IMAGES, SHARED_PHOTOS, photographs

HZ = 250
BATCH = 256
STAGES = ("list", "read", "decode", "score", "write", "other threads")
EXPECTED = (
    "below 100 microseconds an image with DALI, so that one process can hand more than 10,000 images/s to a GPU; "
    "decoding takes most of it, for the header of each image and its place in the batch."
)
_THREAD = re.compile(r"thread \(\w+\): ([a-z]+)-\d+")


def held_us(photos: list[Path], images: int) -> dict[str, float]:
    """Microseconds an image, by stage, of a run of `images` rows over `photos`."""
    with tempfile.TemporaryDirectory(prefix="clipbatch-lock-") as scratch:
        manifest, samples = Path(scratch, "list.txt"), Path(scratch, "samples")
        manifest.write_text("\n".join(map(str, islice(cycle(photos), images))))
        run = [sys.executable, "-m", "clipbatch", "run", manifest, "--labels", "cifar10", "--model", "clipbatch-demo"]
        run += ["--decoder", "dali", "--device", "cpu", "--batch-size", str(BATCH), "--out", Path(scratch, "out")]
        spy = [Path(sys.executable).with_name("py-spy"), "record", "--gil", "--subprocesses", "--threads"]
        spy += ["--rate", str(HZ), "--format", "raw", "--output", samples, "--"]
        subprocess.run([*spy, *run, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        found: Counter[str] = Counter()
        for line in samples.read_text().splitlines():
            stack, count = line.rsplit(" ", 1)
            found[stage_of(stack)] += int(count)
    return {stage: found[stage] / HZ / images * 1e6 for stage in (*STAGES, "encode")}


def stage_of(stack: str) -> str:
    """Which stage the frames of a sample are of: `not counted` for the supervisor, and for loading."""
    thread = _THREAD.search(stack)
    if "clipbatch.workers.worker_main" not in stack or "_find_and_load" in stack:
        return "not counted"
    if "item_batches (" in stack:
        return "list"
    if thread and thread[1] in (*STAGES, "encode"):
        return thread[1]
    if "_Reader" in stack or "read/" in stack:
        return "read"
    if "decode/" in stack:
        return "decode"
    return "other threads" if "Worker.label" in stack or "Thread.run" in stack else "not counted"


def main() -> None:
    parser = timing.arguments("Measure how long Python's lock is held for each image.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8192)
    args = parser.parse_args()
    on, photos = timing.machine(), photographs(args.folder)
    held = held_us(photos, args.images)
    total = sum(held[stage] for stage in STAGES)
    rows = [(stage, f"{held[stage]:.0f}") for stage in STAGES]
    rows += [("sum", f"{total:.0f}"), ("encode (this small model, on a CPU)", f"{held['encode']:.0f}")]
    measured = timing.table(("", "microseconds an image"), rows)
    ceiling = f"One process can hand on {1e6 / total:,.0f} images/s at most." if total else "Too few images to tell."
    body = f"{args.images} rows over {len(photos)} photographs, batch {BATCH}.\n\n{measured}\n\n{ceiling}"
    timing.finish("How long Python's lock is held", body, EXPECTED, {"machine": on, "held_us": held}, args.report)


if __name__ == "__main__":
    main()
