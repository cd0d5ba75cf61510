"""What `gpu_check.py` measures, a section at a time, each in a process of its own. Facts are told as they are found, so
that a section that is ended keeps what it has. Every section also runs on the CPU, at small scale."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import harness
from clipbatch.config import DecodeSettings, ReadSettings, from_flat, hardware
from clipbatch.config import models as catalog
from clipbatch.runs import plan, run
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target, geometry_of
from clipbatch.stages.decode.header import inspect
from clipbatch.stages.decode.pixels import DecodeJob, blank
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.read import Read
from clipbatch.types import Decoded, Encoded, Item, ItemBatch, ReadBatch, Reject
from contestants import Ours, random_model, random_weights, rate, settle
from fixtures import list_names
from peers import PEERS, Subject

FULL = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
Tell = Callable[[str, Any], None]
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_HTML = bytearray(b"<!doctype html><title>404</title>" + b"not found" * 500)
_TARGET = Target(height=224, width=224, resize_mode="shortest", interpolation="bicubic", fill=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything."""

    device: str
    photos: tuple[Path, ...]
    models: tuple[str, ...] = FULL
    images: int = 16384
    """In a round."""
    batch: int = 256
    rounds: int = 3
    copy_mib: int = 4096
    matmul: int = 8192
    crash_batches: tuple[int, ...] = (64, 256)
    loads: tuple[float, ...] = (0.0, 0.3, 0.5, 0.65, 0.8, 0.95)
    """Shares for the JPEG engines to try; 0.65 is DALI's default."""
    patience: float = 1.0
    """What all time limits are multiplied by."""

    @classmethod
    def small(cls, device: str, photos: tuple[Path, ...]) -> Scale:
        """As little as possible, with the embedded model."""
        little: Any = {"images": 16, "batch": 8, "rounds": 1, "copy_mib": 16, "matmul": 256, "patience": 8.0}
        return cls(
            device=device, photos=photos[:16], models=(catalog.DEMO,), crash_batches=(64,), loads=(0.5,), **little
        )

    @property
    def precision(self) -> str:
        """What a run takes by default."""
        return "fp16" if self.device != "cpu" else "bf16" if hardware.has_fast_bf16() else "fp32"


def ceilings(scale: Scale, tell: Tell) -> None:
    """The device's memory and its matrix units, as a large copy and a large product find them, on random data."""
    if scale.device != "cpu":
        facts = torch.cuda.get_device_properties(scale.device)
        tell("device", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")
    source = torch.randint(0, 255, (scale.copy_mib * 2**20,), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    tell("copy GB/s", 2 * source.numel() / median_s(lambda: target.copy_(source), scale.device) / 1e9)
    dtype, n = torch.float32 if scale.device == "cpu" else torch.float16, scale.matmul
    a, b = (torch.randn(n, n, device=scale.device, dtype=dtype) for _ in range(2))
    tell("matmul TFLOP/s", 2 * n**3 / median_s(lambda: a @ b, scale.device) / 1e12)


def median_s(work: Callable[[], object], device: str) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(10):
        settle(device)
        begun = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def model(scale: Scale, tell: Tell, name: str) -> None:
    """Reading, reading and decoding, encoding, and the whole run, in turns."""
    with tempfile.TemporaryDirectory(prefix="clipbatch-gpu-") as scratch:
        enough = max(scale.batch, int(min(1, 60 / catalog.gflop(name)) * scale.images) // scale.batch * scale.batch)
        listed = list_names(scale.photos, enough, Path(scratch, "photos.txt"))
        settings = {**random_model(name, Path(scratch)), "inputs": [str(listed)], "batch_size": scale.batch}
        images = {"read": scale.images, "decode": scale.images, "encode": enough}
        ours = Ours(settings, Path(scratch, "run"), scale.device, images)
        work = {"read": ours.read, "decode": ours.decode, "encode": ours.encode, "run": ours.run}
        contestants = {what: ours.rate(one) for what, one in work.items()}
        for what, values in harness.interleave(contestants, scale.rounds).items():
            tell(f"{what} images/s", float(np.median(values)))
        if scale.device != "cpu":
            tell("peak GiB", torch.cuda.max_memory_reserved(scale.device) / 2**30)


def _item_batches(scale: Scale) -> Iterator[ItemBatch]:
    paths = islice(cycle(scale.photos), scale.images)
    items = [Item(row_id=number, uri=str(path), path=str(path)) for number, path in enumerate(paths)]
    for at in range(0, len(items), scale.batch):
        yield ItemBatch(shard=0, start=at, items=tuple(items[at : at + scale.batch]), rows=pa.table({}), last=False)


def _decode_rate(scale: Scale, settings: DecodeSettings, rounds: int) -> float:
    """Images/s of reading and decoding to 224 pixels."""
    decode = Decode(settings, _TARGET, batch_size=scale.batch, device=scale.device)
    read = Read(ReadSettings(), batches=4 * decode.threads)
    stages = [
        Stage(name="read", work=read, threads=read.batches),
        Stage(name="decode", work=decode, threads=decode.threads),
    ]

    def work() -> int:
        return sum(len(batch.outcomes) for batch in Flow(_item_batches(scale), stages))

    work()
    return float(np.median([rate(work, scale.device) for _ in range(rounds)]))


def decoders(scale: Scale, tell: Tell) -> None:
    """Reading and decoding alone: ours, DALI as its documentation has it, torchvision's nvJPEG."""
    from nvidia.dali import fn, pipeline_def, types
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import functional as tv

    tell("ours images/s", _decode_rate(scale, DecodeSettings(decoder="dali"), scale.rounds))
    gpu, paths = scale.device != "cpu", [str(path) for path in islice(cycle(scale.photos), scale.images)]

    @pipeline_def(batch_size=scale.batch, num_threads=hardware.cores(), device_id=0 if gpu else None)
    def graph() -> Any:
        encoded, _ = fn.readers.file(files=paths)
        images = fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB)
        resized = fn.resize(images, resize_shorter=224, interp_type=types.INTERP_CUBIC)
        return fn.crop(resized, crop=(224, 224))

    pipe = graph()
    pipe.build()

    def dali() -> int:
        return sum(len(pipe.run()[0]) for _ in range(max(1, scale.images // scale.batch)))

    def torchvision() -> int:
        count = 0
        for at in range(0, len(paths), scale.batch):
            files = [read_file(path) for path in paths[at : at + scale.batch]]
            images = decode_jpeg(files, ImageReadMode.RGB, device=scale.device)
            small = [tv.center_crop(tv.resize(image_CHW, [224], antialias=True), [224, 224]) for image_CHW in images]
            count += len(torch.stack(small))
        return count

    for name, work in (("DALI's defaults", dali), ("torchvision", torchvision)):
        work()
        tell(f"{name} images/s", float(np.median([rate(work, scale.device) for _ in range(scale.rounds)])))


def sweep(scale: Scale, tell: Tell) -> None:
    """Decoding alone with each share for the JPEG engines."""
    for load in scale.loads:
        tell(f"{load} images/s", _decode_rate(scale, DecodeSettings(decoder="dali", hw_decoder_load=load), rounds=1))


def crash(scale: Scale, tell: Tell, batch: int, checked: bool) -> None:
    """One unparseable image among `batch`; checked: by way of the decode stage, which looks first."""
    good = [bytearray(path.read_bytes()) for path in islice(cycle(scale.photos), batch - 1)]
    files = [*good[: batch // 2], _HTML, *good[batch // 2 :]]
    if checked:
        stage = Decode(DecodeSettings(decoder="dali"), _TARGET, batch_size=batch, device=scale.device, threads=1)
        source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
        outcomes = stage(ReadBatch(source=source, slots=tuple(Encoded(data=data) for data in files))).outcomes
        decoded, rejected = (sum(isinstance(one, kind) for one in outcomes) for kind in (Decoded, Reject))
        tell("outcome", f"{decoded} decoded, {rejected} rejected of {batch}")
        return
    from clipbatch.stages.decode.dali import DaliDecoder

    device_id = None if scale.device == "cpu" else 0
    decoder = DaliDecoder(batch_size=batch, interpolation="bicubic", device_id=device_id, threads=hardware.cores())
    jobs = []
    for slot, data in enumerate(files):
        header = inspect(data) or inspect(good[0])
        assert header
        geometry = geometry_of(header.height, header.width, 1, _TARGET)
        jobs.append(DecodeJob(slot=slot, data=data, geometry=geometry))
    failed = decoder.fill(blank(batch, 224, 224, 0, scale.device), jobs)
    tell("outcome", f"{batch - len(failed)} decoded, {len(failed)} refused of {batch}")


def parity(scale: Scale, tell: Tell) -> None:
    """Whole runs against open_clip's own transform and model in fp32 on the CPU, stored orientation for both."""
    with tempfile.TemporaryDirectory(prefix="clipbatch-gpu-") as scratch:
        for name in dict.fromkeys((catalog.DEMO, scale.models[0])):
            weights = random_weights(name, Path(scratch))
            listed = list_names(scale.photos, len(scale.photos), Path(scratch, "photos.txt"))
            own = {"inputs": [str(listed)], "labels": "cifar10", "orientation": "stored", "embeddings": True}
            settings = from_flat({**own, "model": name, "pretrained": weights, "device": scale.device})
            out = Path(scratch, name)
            run.run(settings, out, quiet=True)
            table = pq.read_table(out / "parts", columns=["label", "embedding"])
            image_BD, best = _reference(name, weights, scale.photos, out)
            cosine_B = torch.cosine_similarity(
                torch.tensor(np.array(table["embedding"].to_pylist(), np.float32)), image_BD
            )
            agreed = np.mean([ours == theirs for ours, theirs in zip(table["label"].to_pylist(), best, strict=True)])
            tell(f"{name} cosine, mean", float(cosine_B.mean()))
            tell(f"{name} cosine, worst", float(cosine_B.min()))
            tell(f"{name} top-1 agreement", float(agreed))


@torch.inference_mode()
def _reference(name: str, weights: str, photos: tuple[Path, ...], out: Path) -> tuple[torch.Tensor, list[str]]:
    if name == catalog.DEMO:
        open_clip.add_model_config(catalog.config_file(name))
    module, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)
    (labels,) = plan.plan(from_flat({}), out).labels.groups
    text_DL = open_clip.build_zero_shot_classifier(
        module.eval(), open_clip.get_tokenizer(name), labels.names, [text.format for text in labels.templates]
    )
    image_BD = torch.cat(
        [
            module.encode_image(torch.stack([transform(Image.open(path)) for path in photos[at : at + 16]]), True)
            for at in range(0, len(photos), 16)
        ]
    )
    return image_BD, [labels.names[best] for best in (image_BD @ text_DL).argmax(dim=1)]


def peer(scale: Scale, tell: Tell, name: str, which: str, images: int) -> None:
    """One of `PEERS`; a round to warm up, and one that counts."""
    with tempfile.TemporaryDirectory(prefix="clipbatch-gpu-") as scratch:
        work = PEERS[name](
            Subject(
                model=which,
                weights=random_weights(which, Path(scratch)),
                photos=list(scale.photos),
                images=images,
                device=scale.device,
                precision=scale.precision,
                batch=scale.batch,
                labels=LABELS,
            )
        )
        work()
        tell("images/s", work())
