"""The sections of `gpu_check.py` that decode and do not encode: one JPEG, an image that nothing can parse, the JPEG
engines, and decoding alone beside others. Those that ask whether DALI works use DALI itself, and not the product."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from nvidia import dali, nvimgcodec
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import functional as tv

from clipbatch.config import DecodeSettings, ReadSettings, hardware
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.engines import ENGINE_SHARE, best_share, count_engines
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.first_contact import primer
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.read import Read
from clipbatch.types import Decoded, Encoded, Item, ItemBatch, ReadBatch, Reject
from contestants import rate
from gpu_sections import Scale, Tell

_HTML = b"<!doctype html><title>404</title>" + b"not found" * 500
_TARGET = Target(height=224, width=224, resize_mode="shortest", interpolation="bicubic", fill=0)
_CPU_ONLY = -99999
"""nvImageCodec's NVIMGCODEC_DEVICE_CPU_ONLY."""


@pipeline_def
def _whole_images(gpu: bool, load: float) -> Any:
    """Encoded bytes -> whole images in RGB."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return fn.decoders.image(
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
        hw_decoder_load=load,
    )


def _decode_whole(scale: Scale, files: list[bytes], load: float) -> list[np.ndarray[Any, Any]]:
    """`files` in one batch, as DALI alone decodes them. load: the JPEG engines' share."""
    pipe = _whole_images(
        gpu=scale.gpu,
        load=load,
        batch_size=len(files),
        num_threads=hardware.cores(),
        device_id=scale.device_id,
    )
    pipe.build()
    pipe.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in files])
    (images,) = pipe.run()
    host = images.as_cpu()
    return [host.at(number) for number in range(len(files))]


def mixed(scale: Scale, tell: Tell) -> None:
    """One JPEG, decoded by CUDA and by the JPEG engines, held against Pillow's."""
    tell("versions", f"DALI {dali.__version__}, nvImageCodec {nvimgcodec.__version__}, torch {torch.__version__}")
    if scale.gpu:
        facts = torch.cuda.get_device_properties(scale.device)
        tell("device", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {facts.multi_processor_count} processors")
    data = scale.photos[0].read_bytes()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)
    for load, name in ((0.0, "CUDA"), (1.0, "JPEG engines")) if scale.gpu else ((0.0, "CPU"),):
        (image,) = _decode_whole(scale, [data], load)
        off = np.abs(image.astype(np.int16) - expected)
        tell(f"{name}, off Pillow's of 255", f"{off.mean():.3f} in the mean, {off.max()} at most")


def crash(scale: Scale, tell: Tell, batch: int, checked: bool) -> None:
    """One unparseable image among `batch`; checked: by way of the decode stage, which looks first."""
    good = [path.read_bytes() for path in islice(cycle(scale.photos), batch - 1)]
    files = [*good[: batch // 2], _HTML, *good[batch // 2 :]]
    if checked:
        stage = Decode(DecodeSettings(decoder="dali"), _TARGET, batch_size=batch, device=scale.device, threads=1)
        source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
        slots = tuple(Encoded(data=bytearray(data)) for data in files)
        outcomes = stage(ReadBatch(source=source, slots=slots)).outcomes
        decoded, rejected = (sum(isinstance(one, kind) for one in outcomes) for kind in (Decoded, Reject))
        tell("outcome", f"{decoded} decoded, {rejected} rejected of {batch}")
    else:
        try:
            _decode_whole(scale, files, 0.65)
            tell("outcome", "decoded without a word")
        except RuntimeError as error:
            tell("outcome", f"refused by an exception: {' '.join(str(error).split())[:200]}")


def engines(scale: Scale, tell: Tell) -> None:
    """How many JPEG engines nvJPEG finds, and what nvImageCodec does with them alone, with CUDA alone and with both;
    on a CPU what its decoder for CPUs does."""
    kinds = nvimgcodec.BackendKind
    if scale.gpu:
        count, why = count_engines()
        tell("engines", why or count)
        ways = {
            "engines": [kinds.HW_GPU_ONLY],
            "CUDA": [kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU],
            "both": [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU],
        }
    else:
        ways = {"CPU": [kinds.CPU_ONLY]}
    files = [path.read_bytes() for path in islice(cycle(scale.photos), scale.batch)]
    rounds = max(1, scale.images // scale.batch // 2)
    for name, backends in ways.items():
        decoder = nvimgcodec.Decoder(
            device_id=_CPU_ONLY if scale.device_id is None else scale.device_id,
            max_num_cpu_threads=hardware.cores(),
            backends=[nvimgcodec.Backend(kind) for kind in backends],
        )
        refused = sum(image is None for image in decoder.decode(files))
        if refused:
            tell(f"{name}: refused", f"{refused} of {len(files)}")
        if refused < len(files):
            tell(f"{name} images/s", rate(_repeated(decoder, files, rounds), scale.device))


def _repeated(decoder: Any, files: list[bytes], rounds: int) -> Callable[[], int]:
    def work() -> int:
        return sum(len(decoder.decode(files)) for _ in range(rounds))

    return work


def split(scale: Scale, tell: Tell) -> None:
    """Decoding alone, in one lane, with each share for the JPEG engines that a run tries; and which one it takes."""
    settings = DecodeSettings(decoder="dali", hw_decoder_load=ENGINE_SHARE)  # so that a CPU has both pipelines, too
    decode = Decode(settings, _TARGET, batch_size=scale.batch, device=scale.device, threads=1)
    decode.prime(primer())
    files = [bytearray(path.read_bytes()) for path in scale.photos]

    def measured(share: float) -> float:
        images_per_s = decode.rate(files, share)
        tell(f"{share:.2f} images/s", images_per_s)
        return images_per_s

    tell("best share", best_share(measured))
    decode.close()


def _item_batches(scale: Scale, images: int) -> Iterator[ItemBatch]:
    paths = islice(cycle(scale.photos), images)
    items = [Item(row_id=number, uri=str(path), path=str(path)) for number, path in enumerate(paths)]
    for at in range(0, len(items), scale.batch):
        yield ItemBatch(shard=0, start=at, items=tuple(items[at : at + scale.batch]), rows=pa.table({}), last=False)


def _decode_rate(scale: Scale, settings: DecodeSettings, images: int, rounds: int) -> float:
    """Images/s of reading and decoding to 224 pixels."""
    decode = Decode(settings, _TARGET, batch_size=scale.batch, device=scale.device)
    read = Read(ReadSettings(), batches=4 * decode.threads)
    stages = [
        Stage(name="read", work=read, threads=read.batches),
        Stage(name="decode", work=decode, threads=decode.threads),
    ]

    def work() -> int:
        return sum(len(batch.outcomes) for batch in Flow(_item_batches(scale, images), stages))

    work()
    return float(np.median([rate(work, scale.device) for _ in range(rounds)]))


def decoders(scale: Scale, tell: Tell) -> None:
    """Reading and decoding alone: ours, DALI as its documentation has it, torchvision's nvJPEG."""
    tell("ours images/s", _decode_rate(scale, DecodeSettings(decoder="dali"), scale.images, scale.rounds))
    paths = [str(path) for path in islice(cycle(scale.photos), scale.images)]

    @pipeline_def(batch_size=scale.batch, num_threads=hardware.cores(), device_id=scale.device_id)
    def graph() -> Any:
        encoded, _ = fn.readers.file(files=paths)
        images = fn.decoders.image(encoded, device="mixed" if scale.gpu else "cpu", output_type=types.RGB)
        resized = fn.resize(images, resize_shorter=224, interp_type=types.INTERP_CUBIC)
        return fn.crop(resized, crop=(224, 224))

    pipe = graph()
    pipe.build()

    def by_dali() -> int:
        return sum(len(pipe.run()[0]) for _ in range(max(1, scale.images // scale.batch)))

    def by_torchvision() -> int:
        count = 0
        for at in range(0, len(paths), scale.batch):
            files = [read_file(path) for path in paths[at : at + scale.batch]]
            images = decode_jpeg(files, ImageReadMode.RGB, device=scale.device)
            small = [tv.center_crop(tv.resize(image_CHW, [224], antialias=True), [224, 224]) for image_CHW in images]
            count += len(torch.stack(small))
        return count

    for name, work in (("DALI's defaults", by_dali), ("torchvision", by_torchvision)):
        work()
        tell(f"{name} images/s", float(np.median([rate(work, scale.device) for _ in range(scale.rounds)])))
