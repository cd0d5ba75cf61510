"""Whether a run stays the same for as long as it lasts: memory, open files, threads and rate.

    python benchmarks/soak.py [--images 1000000] [--decoder auto|dali] [--bad-every 50] [--report PATH]

Names the files of memory.py's pool, shrunk to about 48 x 48, over and over in a text manifest (2 in 100 of them bad, of
six kinds), and labels them with `clipbatch run` and the embedded model on the CPU. Once a second it reads from /proc
what the supervisor and its worker hold, and counts the parts. The table has the mean of each quarter of the steady
state (memory.py says what that is) and the growth from the first to the last. In the end every row must be there
(`clipbatch verify`), and no worker may have been started again.

Expected: flat. Memory grows by less than 2%, files and threads by nothing, and the rate stays within 5%.

With --report and matplotlib there is also a plot, PATH with the suffix .png.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import harness as timing
from memory import BAD_EVERY, LEAST_SAMPLES, Sample, children, make_pool, resident_mib, steady

EVERY_S = 1.0
SHARD = 1024
EXPECTED = "flat: memory within 2%, open files and threads the same, rate within 5%, no restart, every row there."


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment(Sample):
    """What a run holds at a moment, and how far it is."""

    supervisor_files: int
    worker_files: int
    supervisor_threads: int
    worker_threads: int
    rows: int
    """In parts that are published."""


def small_pool(folder: Path, bad_every: int = BAD_EVERY) -> list[Path]:
    """The pool of memory.py with its healthy pictures shrunk: 36 to 60 pixels a side."""
    rng, pool = np.random.default_rng(1), make_pool(folder, bad_every)
    for number, path in enumerate(pool):
        if number % bad_every != bad_every - 1:
            width, height = (int(side) for side in rng.integers(36, 61, 2))
            with Image.open(path) as image:
                small = image.resize((width, height))
            small.save(path, quality=85)
    return pool


def write_manifest(pool: list[Path], images: int, target: Path) -> None:
    """`images` lines that name the files of `pool` in turn."""
    names = [f"{path}\n" for path in pool]
    with target.open("w") as file:
        for first in range(0, images, len(names)):
            file.writelines(names[: images - first])


def open_files(pid: int) -> int:
    """Open file descriptors of a process; 0 where it has ended. Source: proc(5), fd."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def threads(pid: int) -> int:
    """Threads of a process; 0 where it has ended. Source: proc(5), task."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def watch(manifest: Path, images: int, out: Path, decoder: str) -> list[Moment]:
    """Label `manifest` with `decoder`; a moment every EVERY_S seconds."""
    command = [sys.executable, "-m", "clipbatch", "run", str(manifest), "--out", str(out), "--shard-size", str(SHARD)]
    command += ["--model", "clipbatch-demo", "--labels", "cifar10", "--device", "cpu", "--quiet"]
    command += ["--decoder", decoder]
    begun, moments = time.perf_counter(), list[Moment]()
    with subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(out.parent / "cache")}) as process:
        while process.poll() is None:
            workers = children(process.pid)
            parts = len(list(out.glob("parts/part-*.parquet")))
            moments.append(
                Moment(
                    at_s=time.perf_counter() - begun,
                    loaded=(out / "text.npy").exists(),
                    supervisor=resident_mib(process.pid),
                    worker=sum(map(resident_mib, workers)),
                    supervisor_files=open_files(process.pid),
                    worker_files=sum(map(open_files, workers)),
                    supervisor_threads=threads(process.pid),
                    worker_threads=sum(map(threads, workers)),
                    rows=min(parts * SHARD, images),
                )
            )
            time.sleep(max(0.0, EVERY_S - (time.perf_counter() - begun) % EVERY_S))
    if process.returncode:
        raise SystemExit(f"clipbatch run ended with exit code {process.returncode}")
    subprocess.run([sys.executable, "-m", "clipbatch", "verify", str(out)], check=True, stdout=subprocess.DEVNULL)
    return moments


def quarters(moments: list[Moment], value: Callable[[Moment], float]) -> list[float]:
    """The mean of `value` in each quarter."""
    size = len(moments) // 4
    return [statistics.mean(map(value, moments[n * size : (n + 1) * size])) for n in range(4)]


def rates(moments: list[Moment]) -> list[float]:
    """Images a second in each quarter, from the first part that appears in it to the last."""
    size, found = len(moments) // 4, list[float]()
    for number in range(4):
        quarter = moments[number * size : (number + 1) * size + 1]
        steps = [b for a, b in itertools.pairwise(quarter) if b.rows > a.rows]
        seconds = steps[-1].at_s - steps[0].at_s if len(steps) > 1 else 0.0
        found.append((steps[-1].rows - steps[0].rows) / seconds if seconds else float("nan"))
    return found


def figures(moments: list[Moment]) -> dict[str, list[float]]:
    """What the table shows: quarter means, by name."""
    return {
        "worker, MiB": quarters(moments, lambda moment: moment.worker),
        "supervisor, MiB": quarters(moments, lambda moment: moment.supervisor),
        "worker, open files": quarters(moments, lambda moment: moment.worker_files),
        "supervisor, open files": quarters(moments, lambda moment: moment.supervisor_files),
        "worker, threads": quarters(moments, lambda moment: moment.worker_threads),
        "supervisor, threads": quarters(moments, lambda moment: moment.supervisor_threads),
        "images/s": rates(moments),
    }


def growth(means: list[float]) -> float:
    """From the first quarter to the last, as a share of the first."""
    return means[-1] / means[0] - 1


def plot(moments: list[Moment], target: Path) -> None:
    """Memory, open files, threads and images done over time, a panel each."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(4, 1, sharex=True, figsize=(9, 10))
    times = [moment.at_s / 60 for moment in moments]
    titles = {"": "resident memory, MiB", "_files": "open files", "_threads": "threads"}
    for panel, (suffix, title) in zip(axes, titles.items(), strict=False):
        for who in ("worker", "supervisor"):
            panel.plot(times, [getattr(moment, who + suffix) for moment in moments], label=who)
        panel.set(ylabel=title, ylim=(0, None))
    axes[0].legend(loc="center right")
    axes[3].plot(times, [moment.rows for moment in moments])
    axes[3].set(ylabel="images in parts", xlabel="minutes", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = timing.arguments("Watch a long run of clipbatch.")
    parser.add_argument("--images", type=int, default=1_000_000, help="rows of the manifest (default: %(default)s)")
    parser.add_argument("--decoder", default="auto", help="as for clipbatch run (default: %(default)s)")
    parser.add_argument("--bad-every", type=int, default=BAD_EVERY, help="one image in so many is bad (%(default)s)")
    args = parser.parse_args()
    on = timing.machine()
    with tempfile.TemporaryDirectory(prefix="clipbatch-soak-") as scratch:
        manifest, out = Path(scratch, "images.txt"), Path(scratch, "run")
        pool = small_pool(Path(scratch, "pool"), args.bad_every)
        write_manifest(pool, args.images, manifest)
        moments = watch(manifest, args.images, out, args.decoder)
        report = json.loads((out / "report.json").read_text())
    here, begin = report["this_run"], steady([*moments])[:1]
    calm = [moment for moment in moments if begin and moment.at_s >= begin[0].at_s and moment.worker]
    if len(calm) < LEAST_SAMPLES:
        raise SystemExit(f"{args.images} images are done too soon for quarters: give more")
    if report["rows_done"] != args.images or here["restarts"]:
        raise SystemExit(f"{report['rows_done']} of {args.images} rows are done, {here['restarts']} restarts")
    found = figures(calm)
    header = ["", *(f"quarter {n}" for n in (1, 2, 3, 4)), "growth"]
    lines = [[name, *(f"{mean:,.1f}" for mean in means), f"{growth(means):+.2%}"] for name, means in found.items()]
    peaks = {"worker": max(m.worker for m in moments), "supervisor": max(m.supervisor for m in moments)}
    bad, seconds, rate = args.images - report["status"]["ok"], here["seconds"], here["images_per_s"]
    body = (
        f"{args.images:,} rows ({bad:,} bad) in {seconds:,.0f} s, {rate:,.0f} images/s, bound by {here['bottleneck']}; "
        f"{len(calm)} samples of the steady state, one every {EVERY_S:g} s. "
        f"Peaks: worker {peaks['worker']:,.0f} MiB, supervisor {peaks['supervisor']:,.0f} MiB. "
        f"Restarts: {here['restarts']}. Verified: every row is there once.\n\n{timing.table(header, lines)}"
    )
    if args.report and importlib.util.find_spec("matplotlib"):
        args.report.parent.mkdir(parents=True, exist_ok=True)
        plot(moments, args.report.with_suffix(".png"))
        body += f"\n\n![the run over time]({args.report.with_suffix('.png').name})"
    result: dict[str, Any] = {
        "machine": on,
        "images": args.images,
        "decoder": args.decoder,
        "status": report["status"],
        "peak_mib": peaks,
    }
    result |= {"seconds": seconds, "images_per_s": rate, "restarts": here["restarts"]}
    result["quarters"] = {name: [round(mean, 2) for mean in means] for name, means in found.items()}
    timing.finish("A long run", body, EXPECTED, result, args.report)


if __name__ == "__main__":
    main()
