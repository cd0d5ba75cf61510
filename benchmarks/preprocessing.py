"""Ways from JPEG bytes in memory to normalised pixels on the device, 224 a side, each timed in seconds.

    CLIPProcessor, CPU   transformers' image processor as its documentation calls it: Pillow, 50 images in a call
    torchvision          `decode_jpeg` of 50 at a time, on one core or on the GPU, each resized and cropped there
    clipbatch            our decode stage with the threads of a run: torchvision on all cores, or DALI on a GPU
    clipbatch, DALI      its CPU back end, where there is no GPU; in a process of its own, since it has glibc map each
                         larger block anew, for everybody

The normalisation that follows our stages on the device is counted.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

import harness
from clipbatch.config import DecodeSettings, hardware
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Normalise
from clipbatch.stages.flow import Flow, Stage
from clipbatch.types import Encoded, ItemBatch, PixelBatch, ReadBatch
from contestants import clip_processor, settle
from fixtures import about, photographs
from peers import resized

BATCH, SIDE = 50, 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TARGET = Target(height=SIDE, width=SIDE, resize_mode="shortest", interpolation="bicubic", fill=0)
ON_A_GPU = ("torchvision, GPU", "clipbatch, DALI on the GPU")
_work: Callable[[], float]
"""What the process of its own does in each round."""


def preprocess(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Milliseconds an image, by whom, for how many, and of what size."""
    paths = [path for path in photographs(args.folder) if path.read_bytes()[:2] == b"\xff\xd8"]
    photos = [path.read_bytes() for path in paths]
    tables, result = [about(paths, args.rounds)], {}
    for kind, some in {"photographs": photos, "32 x 32 pixels": list(map(thumbnail, photos))}.items():
        for count in map(int, args.counts.split(",")):
            title = f"{count} {kind}"
            seconds = harness.interleave(ways(list(islice(cycle(some), count)), args.device), args.rounds)
            result[title], base = harness.spreads(seconds), seconds["CLIPProcessor, CPU"]
            rows = [
                [
                    name,
                    harness.spread([1000 * value / count for value in values]).text(2),
                    harness.spread([count / value for value in values]).text(),
                    harness.ratios(base, values).text(2),
                ]
                for name, values in seconds.items()
            ]
            rows += [[name, "not measured", "", ""] for name in ON_A_GPU if args.device == "cpu"]
            tables.append(harness.table((title, "ms an image", "images/s", "times CLIPProcessor's rate"), rows))
    return "\n\n".join(tables), {"device": args.device, "seconds": result}


def thumbnail(data: bytes) -> bytes:
    """The same picture in CIFAR's size, as a JPEG."""
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)).save(out, "JPEG", quality=95)
    return out.getvalue()


def ways(files: list[bytes], device: str) -> dict[str, Callable[[], float]]:
    """name -> a function that prepares all `files` and returns the seconds that it took."""
    gpu = device != "cpu"
    work = {"CLIPProcessor, CPU": clip(files, device), "torchvision, CPU": torchvision(files, "cpu", device)}
    work |= {"torchvision, GPU": torchvision(files, device, device)} if gpu else {}
    work |= {
        "clipbatch, DALI on the GPU" if gpu else "clipbatch": ours(files, "dali" if gpu else "torchvision", device)
    }
    timed = {name: harness.timed(_settled(each, device)) for name, each in work.items()}
    return timed if gpu else {**timed, "clipbatch, DALI": _apart(files)}


def _settled(work: Callable[[], None], device: str) -> Callable[[], None]:
    def until_done() -> None:
        work()
        settle(device)

    return until_done


def clip(files: list[bytes], device: str) -> Callable[[], None]:
    processor = clip_processor("ViT-B-32")

    def work() -> None:
        torch.set_num_threads(hardware.cores())
        for at in range(0, len(files), BATCH):
            images = [Image.open(io.BytesIO(data)) for data in files[at : at + BATCH]]
            processor(images=images, return_tensors="pt")["pixel_values"].to(device)

    return work


def torchvision(files: list[bytes], where: str, device: str) -> Callable[[], None]:
    """where: what decodes and resizes."""
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def work() -> None:
        torch.set_num_threads(1)
        for at in range(0, len(tensors), BATCH):
            images = decode_jpeg(tensors[at : at + BATCH], ImageReadMode.RGB, device=where)
            pixels_BCHW = torch.stack([resized(image_CHW, SIDE) for image_CHW in images])
            tv.normalize(tv.to_dtype(pixels_BCHW, torch.float32, scale=True), list(MEAN), list(STD)).to(device)

    return work


def ours(files: list[bytes], decoder: Any, device: str) -> Callable[[], None]:
    """The decode stage of a run, and the encoder's normalisation."""
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


def _batches(files: list[bytes], size: int) -> list[ReadBatch]:
    batches = []
    for at in range(0, len(files), size):
        slots = tuple(Encoded(data=bytearray(data)) for data in files[at : at + size])
        source = ItemBatch(shard=0, start=at, items=(), rows=pa.table({}), last=False)
        batches.append(ReadBatch(source=source, slots=slots))
    return batches


def _apart(files: list[bytes]) -> Callable[[], float]:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(files,))
    return lambda: pool.submit(_round).result()


def _begin(files: list[bytes]) -> None:
    global _work
    _work = harness.timed(ours(files, "dali", "cpu"))


def _round() -> float:
    return _work()
