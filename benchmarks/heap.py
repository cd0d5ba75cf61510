"""What a worker on a CPU gains by keeping the memory that a batch has freed (`clipbatch.heap`), and what it takes.

    python benchmarks/heap.py [FOLDER] [--models NAME,...] [--images N] [--rounds N] [--report PATH]

The stages of a run over photographs, with weights drawn at random, in a process for each way: with glibc's malloc as
it is, and as a worker has it. Both in turns; the run before the measured one warms up.
"""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness as timing
from clipbatch.config import models as catalog
from clipbatch.stages import memory
from contestants import DEMO_IMAGES, SHARED_PHOTOS, Ours, photographs, random_model

WAYS = {"malloc as it is": "asis", "as a worker has it": "kept"}
EXPECTED = (
    "the larger a model's activations, the more is gained: up to a sixth with ViT-B-16, whose largest take 77 MB a "
    "batch; some with small models, too, since whole images are freed and allocated again. Peak memory grows somewhat."
)


def measured(way: str, given: dict[str, Any], photos: list[Path], images: int) -> dict[str, float]:
    """Images/s, milliseconds of processor time an image, and peak memory of a run of `images` rows, in here."""
    if way == "kept":
        memory.keep_freed()
    with tempfile.TemporaryDirectory(prefix="clipbatch-heap-") as scratch:
        ours = Ours(given, photos, {"run": images}, Path(scratch))
        ours.run()
        before = resource.getrusage(resource.RUSAGE_SELF)
        rate = ours.run()
        after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images/s": rate,
        "ms an image": 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / images,
        "of it in the kernel": 1000 * (after.ru_stime - before.ru_stime) / images,
        "peak MiB": after.ru_maxrss / 1024,
    }


def images_for(model: str) -> int:
    """Rows that take some ten seconds on two cores."""
    return 32 * max(2, min(64, round(64 / catalog.gflop(model))))


def compare(model: str, folder: Path, images: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """By way, the figures of each round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="clipbatch-weights-") as scratch:
        given = {"model": model} if model == catalog.DEMO else random_model(model, Path(scratch))

        def contestant(name: str) -> float:
            task = json.dumps({"way": WAYS[name], "given": given, "images": images})
            said = subprocess.check_output([sys.executable, __file__, str(folder), "--child", task])
            found[name].append(json.loads(said.splitlines()[-1]))
            return found[name][-1]["images/s"]

        timing.interleave({name: functools.partial(contestant, name) for name in WAYS}, rounds)
    return {name: figures[1:] for name, figures in found.items()}


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    rows = []
    for model, ways in found.items():
        base, *_ = ([one["images/s"] for one in figures] for figures in ways.values())
        for name, figures in ways.items():
            cells = [timing.spread([one[what] for one in figures]) for what in figures[0]]
            gain = timing.ratios([one["images/s"] for one in figures], base)
            texts = [cell.text(digits) for cell, digits in zip(cells, (1, 2, 2, 0), strict=True)]
            rows.append([f"{model}, {name}", *texts, gain.text(2)])
    return timing.table(
        ("", "images/s", "ms of processor an image", "in the kernel", "peak MiB", "ratio of rates"), rows
    )


def main() -> None:
    parser = timing.arguments("Measure what keeping freed memory is worth on a CPU.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--models", default="clipbatch-demo,ViT-B-32,ViT-B-16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="rows of a run (default: some ten seconds of work)")
    parser.add_argument("--child", help="what one process is to measure, as JSON; it prints its figures")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(photos=photographs(args.folder), **json.loads(args.child))))
        return
    on = timing.machine()
    models = args.models.split(",")
    found = {name: compare(name, args.folder, args.images or images_for(name), args.rounds) for name in models}
    timing.finish("Keeping freed memory", table(found), EXPECTED, {"machine": on, "models": found}, args.report)


if __name__ == "__main__":
    main()
