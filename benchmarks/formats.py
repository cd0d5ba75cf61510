"""How fast clipbatch lists and reads archives, beside the same files in a folder.

    python benchmarks/archives.py [FOLDER] [--rounds N] [--photos N] [--small N] [--report PATH]

The same images as files of a folder, as a tar and as a zip (stored), in turns, images a second:

    photos read, small read   our read stage alone, in a `Flow`, with the threads that a run gives it
    photos run, small run     a `Worker` over a planned run with the embedded model, from names to published Parquet
    list                      `Listing` over --members tiny members, which plans do

`photos` are FOLDER's files, each under as many names as it takes; `small` are JPEGs of 64 pixels. All of it is in the
page cache: what is compared is the work, not the disk. Beside the rate stands what an image costs in CPU time, which
other work on the machine moves less. A tar or zip should run at 0.95 of the folder's rate at least. Last, a folder of
--files names, listed in a process of its own, with its peak memory.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import harness as timing
from clipbatch.config import SourceSettings, from_flat, models
from clipbatch.inputs import listing as listings
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan as planner
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import Task, Worker, item_batches
from contestants import SHARED_PHOTOS, photographs

FORMS = ("folder", "tar", "zip")
EXPECTED = (
    "tar / folder and zip / folder at least 0.95 in every run. Reading alone, a tar is at least as fast as a folder, "
    "since a member costs one read and a file also an opening; a zip is slower on large images, for its checksums."
)
LIST_FOLDER = """
import re, sys, time
from clipbatch.inputs import listing as source
from clipbatch.config import SourceSettings
def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
before, begun = peak_mib(), time.perf_counter()
listing = source.Listing(source.listers(SourceSettings(inputs=(sys.argv[1],))), None, ())
rows = sum(len(batch) for batch in listing.batches())
print(rows, rows / (time.perf_counter() - begun), peak_mib() - before)
"""


def small_jpegs(count: int) -> list[bytes]:
    """JPEGs of 64 by 64 pixels, about 2 kB each."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        rough.resize((64, 64), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def pack(folder: Path, name: str, contents: Iterable[bytes]) -> dict[str, Path]:
    """The same images in each of `FORMS`."""
    paths = {"folder": folder / name, "tar": folder / f"{name}.tar", "zip": folder / f"{name}.zip"}
    paths["folder"].mkdir()
    with tarfile.open(paths["tar"], "w") as tar, zipfile.ZipFile(paths["zip"], "w") as stored:
        for number, data in enumerate(contents):
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            stored.writestr(member.name, data)
            (paths["folder"] / member.name).write_bytes(data)
    return paths


class Planned:
    """A planned run over one input, and the product's worker with its model loaded."""

    def __init__(self, given: Path, folder: Path) -> None:
        settings = {"inputs": [str(given)], "labels": "cifar10", "model": models.DEMO, "device": "cpu"}
        plan, run = planner.plan(from_flat({**settings, "batch_size": 32}), folder), RunDir(folder)
        self._worker = Worker(run, plan.fingerprint, "cpu", {}, Journal())
        self._tasks = [Task(shard=shard) for shard in range(plan.shards)]
        manifest = Manifest(run, plan)
        self._batches = [batch for task in self._tasks for batch in item_batches(plan, manifest, task)]
        self._reading: Stage = self._worker.stages[0]

    def read(self) -> int:
        """From manifest rows to encoded bytes; returns how many images."""
        return sum(len(done.slots) for done in Flow(self._batches, [self._reading]))

    def run(self) -> int:
        """The whole run; returns how many images were fine."""
        return sum(written.rows - written.bad for written in self._worker.label(self._tasks))


def listing(given: Path) -> int:
    """Rows of a listing."""
    listers = listings.listers(SourceSettings(inputs=(str(given),)))
    return sum(len(batch) for batch in listings.Listing(listers, None, ()).batches())


def by_tarfile(path: Path) -> int:
    """Members that Python's tarfile finds, for comparison; its list of them is emptied on the way."""
    count = 0
    with tarfile.open(path, "r:") as archive:
        while archive.next():
            count, archive.members = count + 1, []  # type: ignore[attr-defined]
    return count


class Clock:
    """Images/s of each contestant, and beside it the CPU microseconds an image."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self.rates: dict[str, list[float]] = {}
        self.cpu_us: dict[str, list[float]] = {}

    def interleave(self, contestants: Mapping[str, Callable[[], int]]) -> None:
        """contestants: each does its work once and returns how many images that were."""
        turns = {name: self._timed(name, work) for name, work in contestants.items()}
        self.rates |= timing.interleave(turns, self._rounds)

    def _timed(self, name: str, work: Callable[[], int]) -> Callable[[], float]:
        def turn() -> float:
            begun, cpu = time.perf_counter(), time.process_time()
            count = work()
            self.cpu_us.setdefault(name, []).append((time.process_time() - cpu) / count * 1e6)
            return count / (time.perf_counter() - begun)

        return turn

    def tables(self, pairs: Mapping[str, tuple[str, str]]) -> str:
        """Rates and costs; and of each pair of contestants, the ratios within a round."""
        cost = {name: values[1:] for name, values in self.cpu_us.items()}  # without the warm-up
        figures = [
            (name, timing.spread(values).text(), timing.spread(cost[name]).text(1))
            for name, values in self.rates.items()
        ]
        compared = [
            (
                pair,
                timing.ratios(self.rates[over], self.rates[under]).text(2),
                timing.ratios(cost[under], cost[over]).text(2),
                ">= 0.95" if " run" in pair else "",
            )
            for pair, (over, under) in pairs.items()
        ]
        header = ("", "images/s, median (min-max)", "CPU us an image")
        ratios = ("ratio within a round", "of rates, median (min-max)", "of CPU time, inverse", "wanted")
        return f"{timing.table(header, figures)}\n\n{timing.table(ratios, compared)}"


def big_folder(files: int, folder: Path) -> dict[str, float]:
    """A folder of `files` names, listed by a fresh process. Its peak memory without what it had at the start."""
    folder.mkdir()
    (folder / "0.jpg").touch()
    for number in range(1, files):
        if number % 60_000 == 0:  # a file system allows just so many links to one file
            (folder / f"{number}.jpg").touch()
        else:
            os.link(folder / f"{number - number % 60_000}.jpg", folder / f"{number}.jpg")
    out = subprocess.check_output([sys.executable, "-c", LIST_FOLDER, folder], text=True)
    rows, rate, mib = map(float, out.split())
    return {"files": rows, "rows_per_s": rate, "peak_mib": mib}


def main() -> None:
    parser = timing.arguments("Measure archives beside folders on this machine.")
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED_PHOTOS, help="of photographs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=1024, help="photographs in a round")
    parser.add_argument("--small", type=int, default=16384, help="small images in a round")
    parser.add_argument("--members", type=int, default=100_000, help="members to list")
    parser.add_argument("--files", type=int, default=1_000_000, help="names of the big folder")
    parser.add_argument("--scratch", type=Path, help="make the files in here (default: a temporary folder)")
    args = parser.parse_args()
    on = timing.machine()
    with tempfile.TemporaryDirectory(prefix="clipbatch-archives-", dir=args.scratch) as name:
        scratch = Path(name)
        photos = [path.read_bytes() for path in photographs(args.folder)]
        kinds = {
            "photos": pack(scratch, "photos", islice(cycle(photos), args.photos)),
            "small": pack(scratch, "small", islice(cycle(small_jpegs(256)), args.small)),
        }
        tiny = pack(scratch, "tiny", islice(cycle([b"x" * 100]), args.members))
        clock = Clock(args.rounds)
        for kind, paths in kinds.items():
            runs = {form: Planned(paths[form], scratch / f"{kind}-{form}-scores") for form in FORMS}
            clock.interleave({f"{kind} read, {form}": run.read for form, run in runs.items()})
            clock.interleave({f"{kind} run, {form}": run.run for form, run in runs.items()})
        lists = {f"list, {form}": partial(listing, tiny[form]) for form in FORMS}
        clock.interleave(lists | {"list, tar by tarfile": partial(by_tarfile, tiny["tar"])})
        big = big_folder(args.files, scratch / "big")
    pairs = {
        f"{what}, {form} / folder": (f"{what}, {form}", f"{what}, folder")
        for what in ("photos read", "photos run", "small read", "small run", "list")
        for form in ("tar", "zip")
    }
    pairs["list, tar / tarfile"] = ("list, tar", "list, tar by tarfile")
    sizes = f"{args.photos} photographs of {sum(map(len, photos)) / len(photos) / 1000:.0f} kB, {args.small} small ones"
    body = "\n\n".join(
        [
            f"{sizes}, {args.members} tiny members to list; {args.rounds} rounds.",
            clock.tables(pairs),
            f"A folder of {big['files']:.0f} names: {big['rows_per_s']:.0f} names/s, {big['peak_mib']:.0f} MiB more "
            "at the peak than before.",
        ]
    )
    found: dict[str, Any] = {
        "machine": on,
        "rates": {name: timing.spread(values) for name, values in clock.rates.items()},
        "ratios": {pair: timing.ratios(clock.rates[a], clock.rates[b]) for pair, (a, b) in pairs.items()},
        "big_folder": big,
    }
    timing.finish("Archives beside folders", body, EXPECTED, found, args.report)


if __name__ == "__main__":
    main()
