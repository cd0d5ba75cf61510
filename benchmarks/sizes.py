"""How many bytes does a row of the parts take, by layout and number of labels, and a row of the manifest?

    python benchmarks/sizes.py --photos FOLDER [--images 8192] [--vit-images 2048] [--report PATH]

Draws a different crop for every image from the photographs, so that no two rows are alike, and labels the crops with
`clipbatch run --embeddings` once for each model. `clipbatch rescore` then writes the same rows in every layout, so the
images are decoded and encoded only once. The bytes are those of the files, footers included.

ViT-B-32 has random weights. Its scores then lie closer together than those of trained weights, but floats that differ
in their last bits do not compress either way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from harness import arguments, finish, machine, table

CROP_PX = 96
LABELS = {10: "cifar10", 27: "documents-27", 1000: "imagenet1k"}
VARIANTS: dict[str, tuple[str, ...]] = {
    "list": (),
    "list, float16": ("--scores-dtype", "float16"),
    "wide": ("--layout", "wide"),
    "top-k, K = 5": ("--top-k", "5"),
    "top-k, K = 1": ("--top-k", "1"),
    "list and embedding": ("--embeddings",),
    "top-k, K = 5, and embedding": ("--top-k", "5", "--embeddings"),
}
EXPECTED = (
    "four bytes a score in the layout list, two in float16, and two a number of the embedding: floats hardly compress"
)


def draw_crops(photos: Path, folder: Path, count: int) -> None:
    """Write `count` different JPEGs of CROP_PX pixels, with names as long as those of a product catalogue."""
    rng = np.random.default_rng(0)
    pictures = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    for number in range(count):
        picture = pictures[number % len(pictures)]
        left, top = (int(rng.integers(0, side - CROP_PX)) for side in picture.size)
        target = folder / f"{number % 64:02d}" / f"product-{number:08d}-front.jpg"
        target.parent.mkdir(exist_ok=True)
        picture.crop((left, top, left + CROP_PX, top + CROP_PX)).save(target, quality=90)


def cli(*args: object) -> None:
    """`clipbatch ARGS` as a user starts it."""
    command = [sys.executable, "-m", "clipbatch", *map(str, args), "--quiet", "--device", "cpu"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("part-*.parquet"))


def measure(
    folder: Path, name: str, model: list[str], crops: Path, count: int, numbers: list[int]
) -> dict[str, dict[int, float]]:
    """Bytes a row, by variant and number of labels (each of `numbers`); and of the manifest."""
    source = folder / f"{name}-source"
    shard = ("--shard-size", str(min(8192, count)), "--batch-size", "32", "--limit", str(count))
    cli("run", crops, *model, *shard, "--labels", "cifar10", "--embeddings", "--out", source)
    sizes: dict[str, dict[int, float]] = {variant: {} for variant in VARIANTS}
    for variant, options in VARIANTS.items():
        for number in numbers:
            out = folder / f"{name}-{number}-{variant.replace(' ', '')}"
            cli("rescore", source, "--labels", LABELS[number], *options, "--out", out)
            rows = json.loads((out / "report.json").read_text())["rows"]
            sizes[variant][number] = bytes_in(out / "parts") / rows
            print(f"  {name}, {variant}, {number} labels: {sizes[variant][number]:.1f}", file=sys.stderr, flush=True)
    sizes["manifest"] = dict.fromkeys(numbers, bytes_in(source / "manifest") / count)
    return sizes


def measure_names(folder: Path, count: int) -> dict[str, float]:
    """Bytes a row of the manifest, which is nearly all names, by how the names are made. No image is read."""
    rng = np.random.default_rng(0)
    kinds = {
        "counted, `07/product-00000007-front.jpg`": [
            f"{number % 64:02d}/product-{number:08d}-front.jpg" for number in range(count)
        ],
        "hashed, 32 hexadecimal digits and `.jpg`": [f"{rng.bytes(16).hex()}.jpg" for _ in range(count)],
    }
    sizes = {}
    for number, (kind, names) in enumerate(kinds.items()):
        listed, out = folder / f"{number}.txt", folder / f"names-{number}"
        listed.write_text("\n".join(names))
        command = (sys.executable, "-m", "clipbatch", "plan", listed, "--model", "clipbatch-demo", "--out", out)
        subprocess.run([*command, "--labels", "cifar10"], check=True, stdout=subprocess.DEVNULL)
        sizes[kind] = bytes_in(out / "manifest") / count
    return sizes


def main() -> None:
    """Parse, measure, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEGs to cut the crops from")
    parser.add_argument("--images", type=int, default=8192, help="labelled with the embedded model")
    parser.add_argument("--vit-images", type=int, default=2048, help="labelled with ViT-B-32; 0: leave it out")
    parser.add_argument("--labels", type=int, nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--names", type=int, default=100_000, help="rows of the plans that show what names cost")
    given = parser.parse_args()
    on = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        crops = folder / "crops"
        crops.mkdir()
        draw_crops(given.photos, crops, max(given.images, given.vit_images))
        names = measure_names(folder, given.names)
        demo = ["--model", "clipbatch-demo"]
        found = {
            f"embedded model, embeddings of 96, {given.images} rows": measure(
                folder, "demo", demo, crops, given.images, given.labels
            )
        }
        if given.vit_images:
            import open_clip
            import safetensors.torch

            weights = folder / "vit.safetensors"
            safetensors.torch.save_model(open_clip.create_model("ViT-B-32"), str(weights))
            found[f"ViT-B-32, embeddings of 512, {given.vit_images} rows"] = measure(
                folder,
                "vit",
                ["--model", "ViT-B-32", "--pretrained", str(weights)],
                crops,
                given.vit_images,
                given.labels,
            )
    header = ["bytes a row", *(f"{number} labels" for number in given.labels)]
    bodies = [
        f"{model}:\n\n"
        + table(header, [[variant, *(f"{size:.0f}" for size in sizes.values())] for variant, sizes in figures.items()])
        for model, figures in found.items()
    ]
    body = (
        f"Crops of {CROP_PX} x {CROP_PX} pixels, all different, names such as `07/product-00000007-front.jpg`, "
        "zstd, no carried columns.\n\n"
        + "\n\n".join(bodies)
        + f"\n\nManifests of {given.names} rows, without carried columns:\n\n"
        + table(["names", "bytes a row"], [[kind, f"{size:.0f}"] for kind, size in names.items()])
    )
    finish("Bytes a row", body, EXPECTED, {"machine": on, "names": names, **found}, given.report)


if __name__ == "__main__":
    main()
