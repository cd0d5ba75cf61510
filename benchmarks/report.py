"""How long `clipbatch report` takes over a run of a million rows, and how much memory.

    python benchmarks/report.py [--rows 1000000] [--labels cifar10,imagenet1k] [--images FOLDER] [--keep FOLDER]
                                [--report PATH]

Plans a run over the files of FOLDER (default: memory.py's pool), named over and over in a text manifest, and writes
its parts with clipbatch's own `Write`, from scores that are drawn and not computed; 2 in 100 rows are bad. The parts'
times are set to one a minute, with a pause of nine hours. Then `clipbatch report` runs as a user starts it, and its
memory and that of its thumbnailer are read from /proc ten times a second. --keep leaves the run directories there.

Expected: a million rows within 60 seconds and 1 GiB, the page under 5 MB; memory depends on the number of labels, not
of rows.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import harness as timing
from clipbatch.config import from_flat
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan as planner
from clipbatch.runs import report
from clipbatch.stages.write import Write
from clipbatch.types import Decoded, ItemBatch, Reject, ScoredBatch
from clipbatch.workers.ranks import Rank
from clipbatch.workers.supervisor import WorkDone
from memory import children, make_pool, resident_mib

EVERY_S = 0.1
SHARD, BATCH = 2**14, 2**11
BAD_EVERY = 50
REJECTS = (
    Reject(status="missing", error="No such file or directory"),
    Reject(status="empty", error="0 bytes"),
    Reject(status="unsupported", error="not an image of a known kind: starts with b'<!DOCTYPE html>'"),
    Reject(status="truncated", error="image file is truncated (15 bytes not processed)"),
    Reject(status="too_large", error="60000 x 60000 pixels, over the limit of 178956970", width=60000, height=60000),
)
BUSY = {"read": 0.11, "decode": 0.94, "encode": 0.41, "score": 0.02, "write": 0.05}
EXPECTED = "a million rows within 60 s and 1 GiB, a page under 5 MB; memory by the number of labels, not of rows."


def make_run(images: Path, rows: int, labels: str, out: Path) -> None:
    """A run directory as `clipbatch run` leaves it."""
    pool = sorted(path for path in images.iterdir() if path.is_file())
    listing = out.with_suffix(".txt")
    listing.write_text("".join(f"{pool[number % len(pool)]}\n" for number in range(rows)))
    settings = from_flat({"inputs": [str(listing)], "labels": labels, "model": "clipbatch-demo"})
    plan = planner.plan(settings.replace(shard_size=SHARD, batch_size=BATCH), out)
    run = RunDir(out)
    fingerprint = run.freeze_model({"name": "clipbatch-demo", "score": "softmax", "width": 64, "height": 64})
    write, manifest, rng = (
        Write(run, plan, fingerprint=fingerprint, score="softmax", embedding=0),
        Manifest(run, plan),
        np.random.default_rng(0),
    )
    done = WorkDone(load_s=4.1)
    for shard in range(plan.shards):
        table = manifest.rows(shard)
        for start in range(0, table.num_rows, BATCH):
            batch = _batch(plan, shard, table.slice(start, BATCH), manifest, rng, last=start + BATCH >= table.num_rows)
            part = write(batch).part
        assert part
        done.counts[shard] = part.counts
        published = time.time() - 60 * (plan.shards - shard) + rng.uniform(0, 6) - 32_400 * (shard < plan.shards // 3)
        os.utime(run.part(shard, plan.shards), (published, published))
    elapsed_s = 60.0 * plan.shards
    times = {
        name: {"busy_s": load * elapsed_s, "starved_s": 0.4 * elapsed_s, "blocked_s": 0.0, "load": load, "threads": 1}
        for name, load in BUSY.items()
    }
    done.stages = [{"times": times, "peak_mib": 4096, "device": "cpu"}]
    report.make(run, plan, done, elapsed_s, Rank(), list(range(plan.shards)))


def _batch(plan: Plan, shard: int, table: Any, manifest: Manifest, rng: np.random.Generator, last: bool) -> ScoredBatch:
    """Scores of a model that knows some labels better than others, softmax of drawn logits."""
    rows, labels = table.num_rows, len(plan.labels.names)
    start = table["row_id"][0].as_py()
    logits_BL = rng.normal(0, 1.5, (rows, labels)).astype(np.float32)
    chosen_B = np.minimum(rng.geometric(min(0.5, 3 / labels), rows) - 1, labels - 1)
    logits_BL[np.arange(rows), chosen_B] += rng.normal(7, 3, rows) + np.log(labels / 10)
    scores_BL = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
    scores_BL /= scores_BL.sum(axis=1, keepdims=True)
    outcomes = [
        REJECTS[(start + slot) // BAD_EVERY % len(REJECTS)]
        if (start + slot) % BAD_EVERY == BAD_EVERY - 1
        else Decoded(width=640, height=480, decoder="torchvision")
        for slot in range(rows)
    ]
    items = tuple(manifest.items(table))
    source = ItemBatch(shard=shard, start=start, items=items, rows=table.drop_columns(["root", "span"]), last=last)
    return ScoredBatch(source=source, outcomes=tuple(outcomes), scores_BL=scores_BL, image_BD=None)


def measure(out: Path) -> dict[str, Any]:
    """Seconds, MiB and bytes of `clipbatch report` on a run directory."""
    begun, cpu_s, peak = time.perf_counter(), _cpu_s(), {"both": 0.0, "report": 0.0, "thumbnailer": 0.0}
    with subprocess.Popen(
        [sys.executable, "-m", "clipbatch", "report", str(out)], stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            own, other = resident_mib(process.pid), sum(map(resident_mib, children(process.pid)))
            for name, value in (("both", own + other), ("report", own), ("thumbnailer", other)):
                peak[name] = max(peak[name], value)
            time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"clipbatch report ended with exit code {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(_cpu_s() - cpu_s, 2),
        "page_bytes": (out / "report.html").stat().st_size,
        **{f"peak_{name}_mib": round(value) for name, value in peak.items()},
    }


def _cpu_s() -> float:
    """Processor seconds of all processes that this one has waited for, and of those that they have."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = timing.arguments("Time clipbatch report on runs of many rows.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the run (default: %(default)s)")
    parser.add_argument("--labels", default="cifar10,imagenet1k", help="label sets, a run each (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="a folder of images (default: drawn ones)")
    parser.add_argument("--keep", type=Path, help="where to leave the run directories")
    args = parser.parse_args()
    on, found = timing.machine(), []
    with tempfile.TemporaryDirectory(prefix="clipbatch-report-") as scratch:
        place, images = args.keep or Path(scratch), args.images
        place.mkdir(exist_ok=True)
        if images is None:
            make_pool(images := Path(scratch, "pool"))
        for labels in args.labels.split(","):
            out = place / f"run-{labels}"
            print(f"  making {args.rows} rows, {labels}", file=sys.stderr, flush=True)
            make_run(images.resolve(), args.rows, labels, out)
            parts_mib = sum(part.stat().st_size for part in (out / "parts").iterdir()) / 2**20
            found.append({"labels": labels, "rows": args.rows, "parts_mib": round(parts_mib), **measure(out)})
    header = [
        "labels",
        "rows",
        "parts, MiB",
        "seconds",
        "of a core",
        "peak, MiB",
        "of it the report",
        "the thumbnailer",
        "page, kB",
    ]
    names = (
        "labels",
        "rows",
        "parts_mib",
        "seconds",
        "cpu_seconds",
        "peak_both_mib",
        "peak_report_mib",
        "peak_thumbnailer_mib",
    )
    lines = [[*(str(entry[name]) for name in names), f"{entry['page_bytes'] / 1000:.0f}"] for entry in found]
    body = (
        "`clipbatch report`, started as a user does; seconds by the clock, and of a core's work; resident memory, each "
        "peak for itself.\n\n"
    )
    timing.finish(
        "A report on a million rows",
        body + timing.table(header, lines),
        EXPECTED,
        {"machine": on, "runs": found},
        args.report,
    )


if __name__ == "__main__":
    main()
