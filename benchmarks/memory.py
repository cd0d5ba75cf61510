"""How much memory a run takes, and whether it stays flat however long the run is.

    python benchmarks/memory.py [--sizes 1000,10000,50000] [--report PATH]

Runs `clipbatch run` with the embedded model on the CPU, as a user starts it, on so many small JPEGs, 2 in 100 of them
bad (empty, an HTML page, cut off, noise, a link to nothing, a PNG with damaged pixels), and reads the resident memory
of the supervisor and of its worker from /proc twice a second. Resident memory counts pages that both share in each of
them, so the sum is a little too high. Steady state begins two seconds after the worker has loaded the model and ends
with the worker.

Expected: flat. The mean over the last quarter of the steady state lies within a few percent of that over the first,
and the peak does not grow any more once a run is longer than a shard: batches in flight are bounded by the queues, and
of a shard the worker keeps only the rows done until its part is published, with a short peak there. The supervisor
imports no torch and stays far below the worker; what it grows by is the listing that it froze. A size whose steady
state is too short for quarters (fewer than 8 samples) shows its peak only.

With --report and matplotlib there is also a plot, PATH with the suffix .png.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import harness as timing
from clipbatch.config import hardware

EVERY_S = 0.5
SETTLE_S = 2.0
"""After the model is loaded, until the queues are full and the allocators warm."""
LEAST_SAMPLES = 8
POOL = 1000
"""Different files; more images than that are hard links to them, under names of their own."""
BAD_EVERY = 50
EXPECTED = (
    "flat: the last quarter's mean within 5% of the first's, and no higher peak once a run is longer than a shard. The "
    "supervisor, which imports no torch, stays far below the worker."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Resident memory at a moment of a run, MiB."""

    at_s: float
    supervisor: float
    worker: float
    loaded: bool
    """Whether the worker has loaded its model."""

    @property
    def both(self) -> float:
        return self.supervisor + self.worker


def make_pool(folder: Path, bad_every: int = BAD_EVERY) -> list[Path]:
    """POOL small files in `folder`, drawn with a fixed seed, each `bad_every`-th of them bad."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(POOL):
        path = folder / f"{number:04}.jpg"
        width, height = (int(side) for side in rng.integers(96, 256, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=85)
        if number % bad_every == bad_every - 1:
            _spoil(path, number // bad_every % 6)
    return sorted(folder.iterdir())


def _spoil(path: Path, kind: int) -> None:
    data = path.read_bytes()
    if kind == 4:
        path.unlink()
        path.symlink_to("nowhere.jpg")
    elif kind == 5:  # its header is fine, so that it reaches the fast decoder
        with Image.open(path) as image:
            image.save(path, "PNG")
        whole = path.read_bytes()
        path.write_bytes(whole[:200] + bytes(byte ^ 0x55 for byte in whole[200:300]) + whole[300:])
    else:
        noise = np.random.default_rng(kind).bytes(4096)
        path.write_bytes([b"", b"<!DOCTYPE html><title>404</title>", data[: len(data) // 3], noise][kind])


def link_images(pool: list[Path], images: int, folder: Path) -> None:
    """`images` names in `folder`, each a hard link to one of `pool`, in turn."""
    folder.mkdir()
    for number in range(images):
        os.link(pool[number % len(pool)], folder / f"{number:07}.jpg", follow_symlinks=False)


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where it has ended. Source: proc(5), statm."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run. Source: proc(5), children."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, listed.read_text().split())
        except OSError:
            continue
    return found


def watch(images: Path, size: int, out: Path) -> list[Sample]:
    """Label the first `size` files of `images`; the run's memory, every EVERY_S seconds."""
    command = [sys.executable, "-m", "clipbatch", "run", str(images), "--limit", str(size), "--out", str(out)]
    command += ["--model", "clipbatch-demo", "--labels", "cifar10", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(out.parent / "cache")}
    begun, samples = time.perf_counter(), list[Sample]()
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            sample = Sample(
                at_s=time.perf_counter() - begun,
                loaded=(out / "text.npy").exists(),  # the last thing that a worker freezes
                supervisor=resident_mib(process.pid),
                worker=sum(map(resident_mib, children(process.pid))),
            )
            samples.append(sample)
            time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"clipbatch run ended with exit code {process.returncode}")
    return samples


def steady(samples: list[Sample]) -> list[Sample]:
    """The samples of the steady state."""
    working = [sample for sample in samples if sample.loaded and sample.worker]
    return [sample for sample in working if sample.at_s >= working[0].at_s + SETTLE_S]


def measure(images: Path, size: int, out: Path) -> tuple[dict[str, Any], list[Sample]]:
    """One run: its figures, MiB, and its samples."""
    samples = watch(images, size, out)
    report = json.loads((out / "report.json").read_text())
    found: dict[str, Any] = {"images": size, "bad": report["rows_done"] - report["status"]["ok"]}
    if report["rows_done"] != size:
        raise SystemExit(f"{report['rows_done']} of {size} images were done")
    found |= {"seconds": report["this_run"]["seconds"], "restarts": report["this_run"]["restarts"]}
    found |= {f"peak_{who}": max(getattr(s, who) for s in samples) for who in ("both", "supervisor", "worker")}
    calm = [sample.both for sample in steady(samples)]
    found["steady_samples"] = len(calm)
    if len(calm) >= LEAST_SAMPLES:
        first, last = statistics.mean(calm[: len(calm) // 4]), statistics.mean(calm[-(len(calm) // 4) :])
        found |= {"first_quarter": first, "last_quarter": last, "growth": last / first - 1}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}, samples


def row(found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    names = ("images", "bad", "seconds", "peak_both", "peak_supervisor", "peak_worker", "first_quarter", "last_quarter")
    growth = f"{found['growth']:+.1%}" if "growth" in found else "-"
    return [*(f"{found[name]:.0f}" if name in found else "-" for name in names), growth]


def plot(runs: dict[int, list[Sample]], target: Path) -> None:
    """Memory over time, a panel a run."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, len(runs), sharey=True, squeeze=False, figsize=(4.5 * len(runs), 4))
    for panel, (size, samples) in zip(axes[0], runs.items(), strict=True):
        for who in ("both", "worker", "supervisor"):
            panel.plot([s.at_s for s in samples], [getattr(s, who) for s in samples], label=who)
        panel.set(title=f"{size:,} images", xlabel="seconds")
    axes[0][0].set_ylabel("resident memory, MiB")
    axes[0][0].set_ylim(bottom=0)  # shared, so only once every panel has its lines
    axes[0][-1].legend(loc="center")
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = timing.arguments("Watch the memory of clipbatch run.")
    parser.add_argument("--sizes", default="1000,10000,50000", help="images of each run (default: %(default)s)")
    args = parser.parse_args()
    sizes, on = [int(size) for size in args.sizes.split(",")], timing.machine()
    found, runs = [], {}
    with tempfile.TemporaryDirectory(prefix="clipbatch-memory-") as scratch:
        images = Path(scratch, "images")
        link_images(make_pool(Path(scratch, "pool")), max(sizes), images)
        for size in sizes:
            print(f"  {size} images", file=sys.stderr, flush=True)
            figures, runs[size] = measure(images, size, Path(scratch, f"run-{size}"))
            found.append(figures)
    header = ["images", "bad", "seconds", "peak, both", "supervisor", "worker", "1st quarter", "last quarter", "growth"]
    body = f"Resident memory, MiB, every {EVERY_S} s; {hardware.cores()} cores; quarters of the steady state.\n\n"
    body += timing.table(header, [row(figures) for figures in found])
    if args.report and importlib.util.find_spec("matplotlib"):
        picture = args.report.with_suffix(".png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot(runs, picture)
        body += f"\n\n![memory over time]({picture.name})"
    timing.finish("Memory of a run", body, EXPECTED, {"machine": on, "runs": found}, args.report)


if __name__ == "__main__":
    main()
