"""Whether int8 weights are worth a `--precision` on a CPU: what torch has of it, beside fp32.

    python benchmarks/int8.py [FOLDER] [--model M] [--images N] [--rounds N] [--report PATH]

    tower      the image tower by one thread, images a CPU second: in fp32, and with its linear layers by
               `quantize_dynamic`, torch's only int8 product that is meant to be fast on a CPU, which scales all
               activations of a batch by their largest value
    row        how far an image's embedding moves when the others of its batch are exchanged: 1 - cosine, at the worst
    product    one layer's matrix product: in fp32, as above, and by `torch._int_mm`, with which each row could have a
               scale of its own

The weights are drawn at random: they cost what trained ones cost, and say nothing about accuracy.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import timing
from contestants import DEMO_IMAGES, SHARED_PHOTOS, photographs

EXPECTED = (
    "int8 faster than fp32, by less than 2 without VNNI; rows that move with their neighbours, since these share a "
    "scale, which a run must not have: kept only if a product with a scale for each row were fast too."
)


def cpu_rate(work: Callable[[], object], count: int) -> float:
    """`count` by the CPU seconds of `work`."""
    begun = time.process_time()
    work()
    return count / (time.process_time() - begun)


def worst_move(tower: nn.Module, images_BCHW: Tensor) -> float:
    """1 - cosine between the embeddings of the first half of a batch, with the second half there and without."""
    half = len(images_BCHW) // 2
    alone, among = tower(images_BCHW[:half]), tower(images_BCHW)[:half]
    return float(1 - functional.cosine_similarity(alone.double(), among.double()).min())


def products(rows: int = 1600, inputs: int = 768, outputs: int = 3072) -> dict[str, Callable[[], object]]:
    """The same matrix product three ways, of the size of 32 images in a ViT-B-32's widest layer."""
    rows_RI = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
    weight_IO = torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8)
    linear = nn.Linear(inputs, outputs, bias=False)
    layer = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)
    given_RI = rows_RI.float()
    return {
        "fp32": lambda: linear(given_RI),
        "int8, a scale for the batch": lambda: layer(given_RI),
        "int8, `_int_mm`": lambda: torch._int_mm(rows_RI, weight_IO),
    }


def main() -> None:
    parser = timing.arguments("Measure what int8 weights would be worth on a CPU.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=32, help="in the batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    on = timing.machine()
    warnings.simplefilter("ignore")  # quantize_dynamic is to move to another package
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(args.model)
    exact = model.visual.eval()
    towers = {
        "fp32": exact,
        "int8": torch.ao.quantization.quantize_dynamic(copy.deepcopy(exact), {nn.Linear}, dtype=torch.qint8),
    }
    images = [Image.open(path).convert("RGB") for path in photographs(args.folder)[: args.images]]
    images_BCHW = torch.stack([transform(image) for image in images])
    with torch.inference_mode():
        whole: dict[str, Callable[[], float]] = {}
        for name, tower in towers.items():
            whole[name] = lambda tower=tower: cpu_rate(lambda: tower(images_BCHW), len(images))
        rates = timing.interleave(whole, args.rounds)
        moves = {name: worst_move(tower, images_BCHW) for name, tower in towers.items()}
        parts: dict[str, Callable[[], float]] = {}
        for name, product in products().items():
            parts[name] = lambda product=product: 1000 / cpu_rate(product, 1)
        milliseconds = timing.interleave(parts, args.rounds)
    gain = timing.ratios(rates["int8"], rates["fp32"])
    spreads = {name: timing.spread(values) for name, values in rates.items()}
    rows = [(name, spread.text(2), f"{moves[name]:.1e}") for name, spread in spreads.items()]
    tower_table = timing.table((args.model, "images a CPU second", "worst move, 1 - cosine"), rows)
    of_products = {name: timing.spread(values) for name, values in milliseconds.items()}
    product_table = timing.table(
        ("one product", "CPU ms"), [(name, spread.text(1)) for name, spread in of_products.items()]
    )
    body = (
        f"{len(images)} photographs in a batch, one thread, {args.rounds} rounds; median (min-max). "
        f"int8 / fp32: {gain.text(2)}.\n\n{tower_table}\n\n{product_table}"
    )
    found: dict[str, Any] = {"machine": on, "gain": gain, "images_per_cpu_s": spreads, "moves": moves}
    timing.finish("int8 weights on a CPU", body, EXPECTED, {**found, "product_ms": of_products}, args.report)


if __name__ == "__main__":
    main()
