"""What the speed benchmarks share: photographs, weights drawn at random, and clipbatch itself, taken apart.

`Ours` is a planned run with the product's own worker, whose stages can be timed alone (reading, reading and decoding,
encoding) and together, on a CPU or a GPU.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

import clipbatch
from clipbatch.config import from_flat
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan
from clipbatch.stages.flow import Flow
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import ShardPipeline, Task, item_batches

DEMO_IMAGES = Path(clipbatch.__file__).parent / "demo" / "images"
SHARED_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"


def photographs(folder: Path) -> list[Path]:
    """The files under `folder` that Pillow can decode whole; the others would only stop the peer."""
    found = []
    for path in sorted(folder.resolve().rglob("*")):
        with contextlib.suppress(OSError, SyntaxError), Image.open(path) as image:
            image.load()
            found.append(path)
    if not found:
        raise SystemExit(f"{folder} holds no photographs that can be decoded")
    return found


def random_weights(model: str, folder: Path) -> Path:
    """Weights for an open_clip model drawn at random: they cost what trained ones cost."""
    torch.manual_seed(0)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that no weights were loaded
    module = open_clip.create_model(model)
    path = folder / f"{model}.safetensors"
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return path


def random_model(model: str, folder: Path) -> dict[str, str]:
    """The settings for an open_clip model with weights drawn at random. By a configuration of another name, since
    clipbatch refuses a file of weights for a model whose published weights want images prepared in different ways."""
    config = folder / f"random-{model}.json"
    config.write_text(json.dumps(open_clip.get_model_config(model)))
    return {"model": str(config), "pretrained": str(random_weights(model, folder))}


def rate(work: Callable[[], int], device: str) -> float:
    """Images/s of `work`, which returns how many images it did; on a GPU, until the GPU is done with them."""
    settle(device)
    begun = time.perf_counter()
    done = work()
    settle(device)
    return done / (time.perf_counter() - begun)


def settle(device: str) -> None:
    """Wait until `device` has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class NoJournal(Journal):
    """Notes nothing, so that a batch may be on its way more than once at a time."""

    def enter(self, start: int, rows: int) -> None:
        pass

    def leave(self, start: int) -> None:
        pass


class Ours:
    """A planned run, and the product's worker with its model loaded."""

    def __init__(
        self, given: dict[str, Any], photos: list[Path], images: dict[str, int], folder: Path, device: str = "cpu"
    ) -> None:
        """given: settings of the run. images: in a round, by contestant. folder: empty."""
        self._images = images
        listing = folder / "photos.txt"
        listing.write_text("".join(f"{path}\n" for path in islice(cycle(photos), images["run"])))
        own = {"inputs": [str(listing)], "labels": "cifar10", "device": device}
        self.plan: Plan = plan.plan(from_flat({**own, **given}), folder / "run")
        run = RunDir(folder / "run")
        self._device = device
        self._worker = ShardPipeline(run, run.plan().fingerprint, device, {}, NoJournal())
        self._tasks = [Task(shard=shard) for shard in range(self.plan.shards)]
        self._read, self._decode, self._encode, *_ = stages = self._worker.stages  # the very ones of a run
        self.threads = ", ".join(f"{stage.name} {stage.threads}" for stage in stages)
        manifest = Manifest(run, self.plan)
        self._items = [batch for task in self._tasks for batch in item_batches(self.plan, manifest, task)]
        self._to_pixels = [self._read, self._decode]
        self._pixels = list(Flow(self._items[:8], self._to_pixels))

    def read(self) -> float:
        """Images/s from file names to bytes in memory."""
        batches = islice(cycle(self._items), max(1, self._images["decode"] // self.plan.batch_size))
        return self._rate(lambda: sum(len(done.slots) for done in Flow(batches, [self._read])))

    def decode(self) -> float:
        """Images/s from file names to pixels."""
        batches = islice(cycle(self._items), max(1, self._images["decode"] // self.plan.batch_size))
        return self._rate(lambda: sum(len(done.outcomes) for done in Flow(batches, self._to_pixels)))

    def encode(self) -> float:
        """Images/s from pixels to embeddings."""
        batches = islice(cycle(self._pixels), max(1, self._images["encode"] // self.plan.batch_size))
        return self._rate(lambda: sum(len(done.outcomes) for done in Flow(batches, [self._encode])))

    def run(self) -> float:
        """Images/s of the whole run; the parts of the last round are replaced by the same ones."""
        return self._rate(lambda: sum(written.rows - written.bad for written in self._worker.label(self._tasks)))

    def _rate(self, work: Callable[[], int]) -> float:
        """work: returns how many images it did."""
        torch.set_num_threads(1)  # as `Encode` sets it on a CPU: each of its lanes is a core
        return rate(work, self._device)
