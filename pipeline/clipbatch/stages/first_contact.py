"""Checks of a worker's decoder and encoder on its own device, before it says that it is loaded.

On a strange machine a decoder may be missing, refuse to start, or return wrong pixels without a word, and a GPU may
compute wrong numbers. So a worker first decodes pictures that come with clipbatch, through each of its lanes, compares
them with Pillow's pixels, encodes some twice, and compares the result with fp32 on the CPU.
"""

from __future__ import annotations

import functools
import importlib.resources
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, Model
from clipbatch.types import Decoded, Encoded, Item, ItemBatch, PixelBatch, ReadBatch

PICTURES = 12
# In the mean over an image, of 255. Decoders differ from Pillow by less than 1; swapped colours by more than 10.
MAX_DIFFERENCE = 8.0
# Images that are also encoded in fp32 on the CPU, which takes some seconds for the largest models.
COMPARED = 2
# Cosine to fp32. fp16 and bf16 lose less than 0.001, fp8 up to 0.01.
MIN_COSINE = 0.97


class UnfitError(RuntimeError):
    """A decoder or encoder does not do what it should. The message says what, in a few words."""


def check_decoder(decode: Decode, settings: DecodeSettings, target: Target) -> PixelBatch:
    """Decode `PICTURES` pictures in each lane of `decode`, after priming its JPEG engines; returns the pixels
    of the last lane.

    Raises: UnfitError if a lane fails on one, or its pixels are not those of Pillow; whatever the decoder raises.
    """
    if decode.engine_share is not None:
        decode.prime(primer())
    small = [data for data in pictures() if _pixels(data) <= settings.max_pixels]
    batch = _batch(small[: decode.batch_size])
    by_pillow = Decode(
        replace(settings, decoder="pil", hw_decoder_load=None, cpu_share=0.0, jpeg_scale="full"),
        target,
        batch_size=len(batch.slots),
        device="cpu",
        threads=1,
    )
    expected_BCHW = by_pillow(batch).pixels_BCHW.float()
    by_pillow.close()
    for _ in range(decode.threads):  # each call takes the lane that has been idle for the longest time
        pixels = decode(batch)
        if pixels.ready:
            pixels.ready.synchronize()
        decoders = [outcome.decoder if isinstance(outcome, Decoded) else None for outcome in pixels.outcomes]
        if (small and settings.decoder not in decoders) or not {settings.decoder, "torchvision"}.issuperset(decoders):
            raise UnfitError("it fails on sound JPEGs")
        off_BCHW = (pixels.pixels_BCHW[: len(batch.slots)].cpu().float() - expected_BCHW).abs()
        worst = float(off_BCHW.mean(dim=(1, 2, 3)).max()) if small else 0.0
        if worst > MAX_DIFFERENCE:
            raise UnfitError(f"it decodes sound JPEGs wrongly: pixels are {worst:.0f} of 255 away from Pillow's")
    return pixels


def reference_features(tower: nn.Module, model: Model, pixels_BCHW: Tensor) -> Tensor:
    """The embeddings of `COMPARED` images in fp32 on the CPU. tower: the image tower in fp32 on the CPU.

    pixels_BCHW: uint8 RGB. Returns `image_BD`, float32, unit length.
    """
    mean_CHW, std_CHW = (torch.tensor(values).view(-1, 1, 1) for values in (model.mean, model.std))
    normal_BCHW = (pixels_BCHW[:COMPARED].cpu().float() / 255 - mean_CHW) / std_CHW
    with torch.inference_mode():
        outputs = tower(normal_BCHW)
    exact_BD = outputs[0] if isinstance(outputs, tuple) else outputs  # CoCa's tower also returns tokens
    return functional.normalize(exact_BD.float(), dim=-1)


def check_encoder(encode: Encode, pixels: PixelBatch, exact_BD: Tensor) -> None:
    """Encode `pixels` twice. exact_BD: `reference_features` of them.

    Raises: UnfitError if the two results differ in a bit, or are far from `exact_BD`.
    """
    first_BD, second_BD = (torch.as_tensor(encode(pixels).image_BD).cpu() for _ in range(2))
    count = len(pixels.outcomes)
    if not torch.equal(first_BD[:count], second_BD[:count]):
        raise UnfitError("it computes other embeddings each time it encodes the same pixels")
    cosines = functional.cosine_similarity(first_BD[: len(exact_BD)].float(), exact_BD)
    if not bool((cosines >= MIN_COSINE).all()):
        raise UnfitError(f"its embeddings are not those of fp32: cosine {float(cosines.min()):.3f}")


def _pixels(data: bytearray) -> int:
    width, height = Image.open(io.BytesIO(data)).size
    return width * height


@functools.cache
def pictures() -> list[bytearray]:
    """Pictures that come with clipbatch, as JPEG files."""
    folder = importlib.resources.files("clipbatch") / "data" / "demo" / "images"
    files = sorted((path for path in folder.iterdir() if path.name.endswith(".jpg")), key=lambda path: path.name)
    return [bytearray(path.read_bytes()) for path in files[:: max(1, len(files) // PICTURES)]][:PICTURES]


@functools.cache
def primer(width: int = 640, height: int = 480) -> list[bytearray]:
    """Baseline JPEGs with 4:2:0 chroma of `width` x `height` pixels, for JPEG engines; made from the pictures."""
    files = []
    for data in pictures():
        out = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").resize((width, height)).save(out, "JPEG", quality=85, subsampling=2)
        files.append(bytearray(out.getvalue()))
    return files


def _batch(files: list[bytearray]) -> ReadBatch:
    items = tuple(Item(row_id=number, uri="", path="") for number in range(len(files)))
    rows = pa.table({"row_id": np.arange(len(files))})
    source = ItemBatch(shard=0, start=0, items=items, rows=rows, last=True)
    return ReadBatch(source=source, slots=tuple(Encoded(data=data) for data in files))
