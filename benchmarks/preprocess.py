"""What preparing images costs, from JPEG bytes in memory to normalised pixels on the device: 50 and 5,000 images.

    python benchmarks/preprocess.py [FOLDER] [--device cpu|cuda:0] [--counts 50,5000] [--rounds N] [--report PATH]

    CLIPProcessor, CPU     transformers' image processor as its documentation calls it: Pillow decodes, one call for 50
                           images at a time
    torchvision, CPU       `decode_jpeg`, resize and crop of each uint8 tensor, one after the other, on one core
    torchvision, GPU       `decode_jpeg` of 50 at a time on the GPU, resized and cropped there
    clipbatch              our decode stage with what a run has of threads: torchvision on all cores, or DALI on a GPU
    clipbatch, DALI        the same with DALI: its CPU back end where there is no GPU

Photographs, and pictures of CIFAR's size (32 x 32), the same ones again and again. All but the first end in 224 x 224
pixels; the normalisation that follows our stages on the device is counted. In turns.
"""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

import harness as timing
from clipbatch.config import DecodeSettings, hardware
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Normalise
from clipbatch.stages.flow import Flow, Stage
from clipbatch.types import Encoded, ItemBatch, PixelBatch, ReadBatch
from contestants import DEMO_IMAGES, SHARED_PHOTOS, photographs, settle
from huggingface import clip_processor

BATCH = 50
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TARGET = Target(height=224, width=224, resize_mode="shortest", interpolation="bicubic", fill=0)
GPU_ONLY = "torchvision, GPU"
EXPECTED = (
    "On a CPU, decoding is most of it for photographs, and the rate does not depend on how many there are; "
    "CLIPProcessor is the slowest. For pictures of 32 x 32, enlarging and normalising are most of it."
)


def contestants(files: list[bytes], device: str) -> dict[str, Callable[[], float]]:
    """name -> a function that prepares all `files` and returns the seconds that it took."""
    gpu, processor = device != "cpu", clip_processor("ViT-B-32")
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def clip() -> None:
        torch.set_num_threads(hardware.cores())
        for at in range(0, len(files), BATCH):
            images = [Image.open(io.BytesIO(data)) for data in files[at : at + BATCH]]
            processor(images=images, return_tensors="pt")["pixel_values"].to(device)

    def prepared(image_CHW: Tensor) -> Tensor:
        resized_CHW = tv.resize(image_CHW, [224], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
        return tv.center_crop(resized_CHW, [224, 224])

    def torchvision(where: str) -> Callable[[], None]:
        def work() -> None:
            torch.set_num_threads(1)
            for at in range(0, len(tensors), BATCH):
                images = decode_jpeg(tensors[at : at + BATCH], ImageReadMode.RGB, device=where)
                small_BCHW = torch.stack([prepared(image_CHW) for image_CHW in images])
                tv.normalize(tv.to_dtype(small_BCHW, torch.float32, scale=True), list(MEAN), list(STD)).to(device)

        return work

    found = {"CLIPProcessor, CPU": clip, "torchvision, CPU": torchvision("cpu")}
    found |= {GPU_ONLY: torchvision(device)} if gpu else {}
    found |= {"clipbatch": ours(files, "dali" if gpu else "torchvision", device)}
    timed = {name: _timed(work, device) for name, work in found.items()}
    return timed if gpu else timed | {"clipbatch, DALI": _apart(files)}


def ours(files: list[bytes], decoder: Any, device: str) -> Callable[[], None]:
    """Prepares `files` with the decode stage of a run."""
    few = min(32, -(-len(files) // hardware.cores()))  # a batch for each core, where there are few images
    size = few if device == "cpu" else 256
    decode = Decode(DecodeSettings(decoder=decoder), TARGET, batch_size=size, device=device)
    normal = Normalise(MEAN, STD, TARGET.width, device)

    def normalise(batch: PixelBatch) -> Tensor:
        return normal(batch.pixels_BCHW, torch.float32)

    def work() -> None:
        torch.set_num_threads(1)
        stages = [Stage(name="decode", work=decode, threads=decode.threads), Stage(name="normalise", work=normalise)]
        for _ in Flow(_batches(files, size), stages):
            pass

    return work


def _apart(files: list[bytes]) -> Callable[[], float]:
    """DALI's CPU back end in a process of its own, since it has glibc map each larger block anew, for everybody."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(files,))
    return lambda: pool.submit(_round).result()


_work: Callable[[], float]
"""What a process of its own does in each round."""


def _begin(files: list[bytes]) -> None:
    global _work
    _work = _timed(ours(files, "dali", "cpu"), "cpu")


def _round() -> float:
    return _work()


def _batches(files: list[bytes], size: int) -> list[ReadBatch]:
    batches = []
    for at in range(0, len(files), size):
        slots = tuple(Encoded(data=bytearray(data)) for data in files[at : at + size])
        source = ItemBatch(shard=0, start=at, items=(), rows=pa.table({}), last=False)
        batches.append(ReadBatch(source=source, slots=slots))
    return batches


def _timed(work: Callable[[], None], device: str) -> Callable[[], float]:
    def seconds() -> float:
        settle(device)
        begun = time.perf_counter()
        work()
        settle(device)
        return time.perf_counter() - begun

    return seconds


def small(files: list[bytes]) -> list[bytes]:
    """The same pictures in CIFAR's size, as JPEGs."""
    made = []
    for data in files:
        out = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)).save(out, "JPEG", quality=95)
        made.append(out.getvalue())
    return made


def main() -> None:
    parser = timing.arguments("Milliseconds to prepare images for CLIP, by whom and for how many.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--counts", default="50,5000")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    on = timing.machine()
    photos = [data for path in photographs(args.folder) if (data := path.read_bytes())[:2] == b"\xff\xd8"]
    kinds = {"photographs": photos, "32 x 32 pixels": small(photos)}
    sections, figures = [], {}
    for kind, some in kinds.items():
        for count in map(int, args.counts.split(",")):
            files = list(islice(cycle(some), count))
            times = timing.interleave(contestants(files, args.device), args.rounds)
            figures[f"{count} {kind}"] = {name: timing.spread(values) for name, values in times.items()}
            sections.append(_table(f"{count} {kind}", count, times))
    mean_kb = sum(map(len, photos)) / len(photos) / 1000
    body = "\n\n".join([f"Photographs of {mean_kb:.0f} kB on average.", *sections])
    result = {"machine": on, "device": args.device, "seconds": figures}
    timing.finish(f"Preparing images, on {args.device}", body, EXPECTED, result, args.report)


def _table(title: str, count: int, times: dict[str, list[float]]) -> str:
    base = times["CLIPProcessor, CPU"]
    rows = [
        [
            name,
            timing.spread([1000 * value / count for value in values]).text(2),
            timing.spread([count / value for value in values]).text(),
            timing.ratios(base, values).text(2),
        ]
        for name, values in times.items()
    ]
    if GPU_ONLY not in times:
        rows += [[name, "not measured", "", ""] for name in (GPU_ONLY, "DALI, GPU")]
    return timing.table((title, "ms an image", "images/s", "times CLIPProcessor's rate"), rows)


if __name__ == "__main__":
    main()
