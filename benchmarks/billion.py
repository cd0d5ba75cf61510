"""What would a billion images take? Constants measured here, and the arithmetic on them.

    python benchmarks/billion.py [--report FILE.md]

Measured: planning (time and bytes a row of the manifest), parts (bytes a row), and listing a folder of parts. Computed,
and named so: the number of parts, and GPU-hours from the ceiling of an H200 at 989 dense TFLOP/s of FP16,
which no run reaches; where decoding or reading is slower than that, it decides.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipbatch.config import models
from clipbatch.config.auto import minute_of_work
from clipbatch.rundir.layout import RunDir, part_name
from harness import arguments, finish, machine, spread, table

IMAGES = 10**9
TFLOPS = 989
GPU_BATCH = 256
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14")
FILE_KB = 110
"""Of a photograph, for the bytes that are read."""


def clipbatch(*args: object) -> float:
    """Seconds that the command takes."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "clipbatch", *map(str, args)], check=True, capture_output=True)
    return time.perf_counter() - begun


def planning(folder: Path, rows: int) -> dict[str, float]:
    """Seconds and bytes of a plan of `rows` rows, a row, from a text manifest with names as photo archives have."""
    listed = folder / "names.txt"
    with listed.open("w") as file:
        for number in range(rows):
            digest = f"{number * 2654435761 % 2**32:08x}"
            file.write(f"/data/photos/{digest[:2]}/{digest[2:4]}/IMG_{number:09d}_{digest}.jpg\n")
    started_s = clipbatch("--version")
    labels = ("--labels", "documents-27", "--model", "ViT-B-32", "--device", "cpu", "--shard-size", 2**16)
    seconds = clipbatch("plan", listed, *labels, "--out", folder / "plan") - started_s
    size = sum(path.stat().st_size for path in (folder / "plan" / "manifest").iterdir())
    return {"plan_us": 1e6 * seconds / rows, "manifest_bytes": size / rows}


def draw(folder: Path, count: int) -> Path:
    """A manifest of `count` images that are all different, as scores that repeat would compress too well."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        coarse.save(folder / "images" / f"IMG_{number:09d}_{rng.integers(2**32):08x}.jpg", quality=80)
    return folder / "images"


def part_bytes(images: Path, out: Path, count: int, *more: str) -> float:
    """Bytes that a row takes in a part of `count` rows."""
    settings = ("--labels", "documents-27", "--model", "clipbatch-demo", "--device", "cpu", "--shard-size", 2**15)
    clipbatch("run", images, *settings, *more, "--out", out)
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


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="in the part that is measured")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the plan that is measured")
    options = parser.parse_args()
    on = machine()
    folder = Path(tempfile.mkdtemp(prefix="clipbatch-billion-"))
    try:
        measured = planning(folder, options.rows)
        images = draw(folder, options.images)
        measured["part_bytes"] = part_bytes(images, folder / "all", options.images)
        measured["part_bytes_top_5"] = part_bytes(images, folder / "top", options.images, "--top-k", "5")
        measured["listing_us"] = spread(listing_us(folder, 10_000)).median
    finally:
        shutil.rmtree(folder)
    constants = [
        ["planning, us a row", f"{measured['plan_us']:.2f}", f"{measured['plan_us'] * IMAGES / 3.6e9:.1f} h, once"],
        ["manifest, bytes a row", f"{measured['manifest_bytes']:.1f}", f"{measured['manifest_bytes']:.0f} GB"],
        ["parts with 27 scores, bytes a row", f"{measured['part_bytes']:.0f}", f"{measured['part_bytes']:.0f} GB"],
        ["parts with --top-k 5", f"{measured['part_bytes_top_5']:.0f}", f"{measured['part_bytes_top_5']:.0f} GB"],
        ["listing, us a part", f"{measured['listing_us']:.2f}", ""],
        [f"images of {FILE_KB} kB, assumed", "", f"{FILE_KB} TB to be read"],
    ]
    computed = []
    for model in MODELS:
        gflop = models.gflop(model)
        size = minute_of_work(True, gflop, "fp16", GPU_BATCH)
        parts, rate = -(-IMAGES // size), TFLOPS * 1e3 / gflop
        computed.append(
            [
                model,
                str(size),
                str(parts),
                f"{measured['listing_us'] * parts / 1e3:.0f} ms",
                f"{measured['part_bytes'] * size / 1e6:.0f} MB",
                f"{rate:.0f}",
                f"{IMAGES / rate / 3600:.1f}",
            ]
        )
    body = (
        f"Measured on a plan of {options.rows} rows and parts of {options.images}; what {IMAGES:,} images make:\n\n"
        f"{table(('what', 'measured', 'for a billion'), constants)}\n\nComputed, not measured:\n\n"
        f"{table(('model', 'shard, rows', 'parts', 'listing', 'a part', 'images/s, ceiling', 'GPU-hours'), computed)}"
    )
    expected = (
        f"GPU-hours are a floor: {TFLOPS} TFLOP/s are a data sheet's, and ViT-B-32 is bound by decoding and reading "
        "long before. The listing is what a process pays to find out what is done."
    )
    result: dict[str, Any] = {"machine": on, **measured}
    finish("The plan for a billion images", body, expected, result, options.report)


if __name__ == "__main__":
    main()
