"""From the script that everybody writes first to clipbatch, one change at a time: seconds an image.

    python benchmarks/steps.py [FOLDER] [--device cpu|cuda:0] [--models ViT-B-32,ViT-B-16] [--rounds N] [--report PATH]

    a process for each image    Python starts, open_clip loads the model, encodes 27 labels and one image, fp32
    model kept                  the same in one process: 27 labels and one image each time
    labels encoded once         one image each time
    10 labels instead of 27     the same
    batches                     --batch images at a time, decoded one after the other
    half precision              fp16 on a GPU, bf16 on a CPU that multiplies it in hardware; else as before
    pipelined                   clipbatch from file names to Parquet, decoding on the CPU's cores beside the encoder
    decoded on the GPU          clipbatch with DALI, on a GPU alone

Weights are drawn at random: they cost what trained ones cost. In turns; each step does as many images as it is given
(few where each takes seconds). On a CPU the last step is not measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

import harness as timing
from clipbatch.config import LabelSettings, hardware, models
from clipbatch.config.labels import load
from clipbatch.stages.encode.model import DTYPES
from contestants import DEMO_IMAGES, SHARED_PHOTOS, Ours, photographs, random_weights, settle
from peers import TEMPLATE

EXPECTED = (
    "Loading the model for each image costs most; then encoding the labels each time. Once their features are kept, 10 "
    "labels cost what 27 do, since scores are one small product. ViT-B-16 is slower than ViT-B-32, about four times in "
    "the encoder: its patches are smaller, so there are four times as many."
)
GPU_STEP = "decoded on the GPU"
ALONE = """
import sys, open_clip, torch
from PIL import Image
model, weights, device, config, path, *labels = sys.argv[1:]
if config: open_clip.add_model_config(config)
net, _, transform = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
net.eval()
with torch.inference_mode():
    tokens = open_clip.get_tokenizer(model)([f"a photo of a {label}." for label in labels])
    text = net.encode_text(tokens.to(device), normalize=True)
    image = net.encode_image(transform(Image.open(path))[None].to(device), normalize=True)
    print((net.logit_scale.exp() * image @ text.T).softmax(-1).argmax().item())
"""


class Script:
    """A script with the model in memory: what each step does for some images."""

    def __init__(self, model: str, weights: str, device: str, precision: str) -> None:
        self._device, self._dtype = device, DTYPES[precision]
        self._net, _, self._transform = open_clip.create_model_and_transforms(
            model, pretrained=weights, precision=precision, device=device
        )
        self._net.eval()
        self._tokenizer = open_clip.get_tokenizer(model)

    @torch.inference_mode()
    def text(self, labels: list[str]) -> Tensor:
        """`text_LD` of `labels`, encoded now."""
        tokens = self._tokenizer([TEMPLATE.format(label) for label in labels]).to(self._device)
        return self._net.encode_text(tokens, normalize=True).float()

    @torch.inference_mode()
    def score(self, paths: list[Path], text_LD: Tensor) -> Tensor:
        """Softmax scores of a batch of files, on the host."""
        pixels_BCHW = torch.stack([self._transform(Image.open(path)) for path in paths])
        image_BD = self._net.encode_image(pixels_BCHW.to(self._device, self._dtype), normalize=True).float()
        return (self._net.logit_scale.exp() * image_BD @ text_LD.T).softmax(dim=-1).cpu()


def steps(model: str, photos: list[Path], args: Any, scratch: Path) -> dict[str, Callable[[], float]]:
    """Each step as a function that returns its seconds an image."""
    many, few = (names(f"documents-{count}") for count in (27, 10))
    gpu, device = args.device != "cpu", args.device
    half = "fp16" if gpu else "bf16" if hardware.has_fast_bf16() else "fp32"
    weights = models.weights_file("embedded") if model == models.DEMO else str(random_weights(model, scratch))
    config = str(models.config_file(model)) if model == models.DEMO else ""
    if config:
        open_clip.add_model_config(config)
    full, halved = Script(model, weights, device, "fp32"), Script(model, weights, device, half)
    text_many, text_few = full.text(many), full.text(few)
    singles, batched = (list(islice(cycle(photos), count)) for count in (args.singles, args.images))

    def alone(path: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-c", ALONE, model, weights, device, config, str(path), *many]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def chunks(script: Script) -> None:
        for at in range(0, len(batched), args.batch):
            script.score(batched[at : at + args.batch], text_few)

    def ours(decoder: str) -> Callable[[], float]:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        images = {"decode": args.batch, "encode": args.batch, "run": args.images}
        given = {"model": model, "pretrained": weights, "batch_size": args.batch, "decoder": decoder, "precision": half}
        made = Ours({**given, "labels": "documents-10"}, photos, images, folder, device)
        return lambda: 1 / made.run()

    def timed(work: Callable[[], object], images: int) -> Callable[[], float]:
        def seconds() -> float:
            torch.set_num_threads(hardware.cores())
            settle(device)
            begun = time.perf_counter()
            work()
            settle(device)
            return (time.perf_counter() - begun) / images

        return seconds

    def each(work: Callable[[Path], object]) -> Callable[[], float]:
        return timed(lambda: [work(path) for path in singles], len(singles))

    found = {
        "a process for each image": timed(lambda: alone(photos[0]), 1),
        "model kept": each(lambda path: full.score([path], full.text(many))),
        "labels encoded once": each(lambda path: full.score([path], text_many)),
        "10 labels instead of 27": each(lambda path: full.score([path], text_few)),
        f"batches of {args.batch}": timed(lambda: chunks(full), len(batched)),
        f"half precision ({half})": timed(lambda: chunks(halved), len(batched)),
        "pipelined (clipbatch)": ours("torchvision"),
    }
    return found | ({GPU_STEP: ours("dali")} if gpu else {})


def names(shipped: str) -> list[str]:
    """The labels of a shipped set."""
    (group,) = load(LabelSettings(labels=shipped)).groups
    return group.names


def main() -> None:
    parser = timing.arguments("Seconds an image, from one process for each to clipbatch, one change at a time.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default="ViT-B-32,ViT-B-16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=128, help="in a round of the steps that work in batches")
    parser.add_argument("--singles", type=int, default=8, help="in a round of the steps that do one at a time")
    args = parser.parse_args()
    on, photos, found = timing.machine(), photographs(args.folder), {}
    for model in args.models.split(","):
        with tempfile.TemporaryDirectory(prefix="clipbatch-steps-") as scratch:
            found[model] = timing.interleave(steps(model, photos, args, Path(scratch)), args.rounds)
    body = "\n\n".join(_table(model, figures) for model, figures in found.items())
    result = {"machine": on, "device": args.device, "s_per_image": {m: _spreads(f) for m, f in found.items()}}
    timing.finish(f"One change at a time, on {args.device}", body, EXPECTED, result, args.report)


def _spreads(figures: dict[str, list[float]]) -> dict[str, timing.Spread]:
    return {name: timing.spread(values) for name, values in figures.items()}


def _table(model: str, figures: dict[str, list[float]]) -> str:
    first, rows, before = next(iter(figures.values())), [], None
    for name, values in figures.items():
        gained = timing.ratios(before, values).text(2) if before else ""
        rows.append([name, timing.spread(values).text(4), gained, timing.ratios(first, values).text(1)])
        before = values
    if GPU_STEP not in figures:
        rows.append([GPU_STEP, "not measured", "", ""])
    return timing.table((model, "seconds an image", "times faster than the step before", "than the first"), rows)


if __name__ == "__main__":
    main()
