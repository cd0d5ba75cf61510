"""What `gpu_check.py` measures, a section at a time, each in a process of its own; those that only decode are in
`gpu_decoding.py`. Facts are told as they are found, so that a section that is ended keeps what it has. Every section
also runs on the CPU, at small scale."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image

import harness
from clipbatch.config import from_flat, hardware
from clipbatch.config import models as catalog
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan, run
from contestants import Ours, random_model, random_weights, settle
from fixtures import list_names
from peers import PEERS, Subject

ROOT = Path(__file__).resolve().parents[1]
GPU_TESTS = ROOT / "tests" / "gpu"
_OUTCOME = re.compile(r"\S*?(?P<test>\w+\.py::.*) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
FULL = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
Tell = Callable[[str, Any], None]
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything."""

    device: str
    photos: tuple[Path, ...]
    scratch: Path
    """A folder that all sections share: weights are drawn once."""
    models: tuple[str, ...] = FULL
    images: int = 16384
    """In a round."""
    batch: int = 256
    rounds: int = 2
    copy_mib: int = 4096
    matmul: int = 8192
    crash_batches: tuple[int, ...] = (256,)
    patience: float = 1.0
    """What the time limits of the sections are multiplied by."""

    @classmethod
    def small(cls, device: str, photos: tuple[Path, ...], scratch: Path) -> Scale:
        """As little as possible, with the embedded model."""
        little: Any = {"images": 16, "batch": 8, "rounds": 1, "copy_mib": 16, "matmul": 256, "patience": 8.0}
        little |= {"models": (catalog.DEMO,), "crash_batches": (64,)}
        return cls(device=device, photos=photos[:16], scratch=scratch, **little)

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def device_id(self) -> int | None:
        """The GPU's number, as DALI wants it; None for the CPU."""
        return int(self.device.partition(":")[2] or 0) if self.gpu else None

    @property
    def precision(self) -> str:
        """What a run takes by default."""
        return "fp16" if self.gpu else "bf16" if hardware.has_fast_bf16() else "fp32"


def first_contact(scale: Scale, tell: Tell) -> None:
    """A run as users start it, of the embedded model over all photographs: which decoder it took, what became of the
    images, what its worker recorded of itself, and how long it took to load."""
    with tempfile.TemporaryDirectory(dir=scale.scratch) as scratch:
        listed = list_names(scale.photos, len(scale.photos), Path(scratch, "photos.txt"))
        settings = {"inputs": [str(listed)], "labels": "cifar10", "model": catalog.DEMO, "device": scale.device}
        begun, out = time.perf_counter(), Path(scratch, "run")
        report = run.run(from_flat(settings), out, quiet=True)
        tell("seconds", round(time.perf_counter() - begun, 1))
        table = pq.read_table(out / "parts", columns=["status", "decoder"])
        for column in table.column_names:
            tell(column, ", ".join(f"{value} {count}" for value, count in Counter(table[column].to_pylist()).items()))
        tell("restarts", report["this_run"]["restarts"])
        for name, value in (RunDir(out).model_facts() or {}).items():
            if name not in report["model"]:
                tell(f"model.json: {name}", value)
        for name, value in report["this_run"]["workers"][0].items():
            tell(f"worker: {name}", value)


def ceilings(scale: Scale, tell: Tell) -> None:
    """The device's memory and its matrix units, as a large copy and a large product find them, on random data."""
    source = torch.randint(0, 255, (scale.copy_mib * 2**20,), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    tell("copy GB/s", 2 * source.numel() / median_s(lambda: target.copy_(source), scale.device) / 1e9)
    dtype, n = torch.float16 if scale.gpu else torch.float32, scale.matmul
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


def _ours(scale: Scale, name: str, scratch: Path) -> Ours:
    """A planned run of `name` with random weights, of fewer images where the model costs more, and its worker."""
    enough = max(scale.batch, int(min(1, 60 / catalog.gflop(name)) * scale.images) // scale.batch * scale.batch)
    listed = list_names(scale.photos, enough, scratch / "photos.txt")
    settings = {**random_model(name, scale.scratch), "inputs": [str(listed)], "batch_size": scale.batch}
    images = {"read": scale.images, "decode": scale.images, "encode": enough}
    return Ours(settings, scratch / "run", scale.device, images)


def encode(scale: Scale, tell: Tell) -> None:
    """Encoding alone, of pixels that lie ready, by model."""
    for name in scale.models:
        with tempfile.TemporaryDirectory(dir=scale.scratch) as scratch:
            ours = _ours(scale, name, Path(scratch))
            values = harness.interleave({name: ours.rate(ours.encode)}, scale.rounds)[name]
            tell(f"{name} images/s", float(np.median(values)))
            del ours
            gc.collect()
            torch.cuda.empty_cache()


def model(scale: Scale, tell: Tell, name: str) -> None:
    """Reading, reading and decoding, encoding, and the whole run, in turns."""
    with tempfile.TemporaryDirectory(dir=scale.scratch) as scratch:
        ours = _ours(scale, name, Path(scratch))
        work = {"read": ours.read, "decode": ours.decode, "encode": ours.encode, "run": ours.run}
        contestants = {what: ours.rate(one) for what, one in work.items()}
        for what, values in harness.interleave(contestants, scale.rounds).items():
            tell(f"{what} images/s", float(np.median(values)))
        if scale.gpu:
            tell("peak GiB", torch.cuda.max_memory_reserved(scale.device) / 2**30)


def tests(scale: Scale, tell: Tell, folder: Path) -> None:
    """The tests in `folder`, where there is a GPU: how many have passed so far, and which have not."""
    if not scale.gpu:
        return
    command = [sys.executable, "-m", "pytest", str(folder), "-v", "-p", "no:cacheprovider", "--color=no"]
    passed, others, last = 0, list[str](), "nothing was said"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        for line in process.stdout or ():
            last = line.strip() or last
            found = _OUTCOME.match(line)
            if found and found["outcome"] == "PASSED":
                tell("passed", passed := passed + 1)
            elif found:
                others.append(f"{found['test']} {found['outcome']}")
                tell("not passed", "; ".join(others))
    tell("outcome", last)


def parity(scale: Scale, tell: Tell) -> None:
    """Whole runs against open_clip's own transform and model in fp32 on the CPU, stored orientation for both."""
    with tempfile.TemporaryDirectory(dir=scale.scratch) as scratch:
        for name in dict.fromkeys((catalog.DEMO, scale.models[0])):
            weights = random_weights(name, scale.scratch)
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
    subject = Subject(
        model=which,
        weights=random_weights(which, scale.scratch),
        photos=list(scale.photos),
        images=images,
        device=scale.device,
        precision=scale.precision,
        batch=scale.batch,
        labels=LABELS,
    )
    work = PEERS[name](subject)
    work()
    tell("images/s", work())
