"""clipbatch itself, taken apart, and what all contestants get: models with random weights, the clock on a device."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from clipbatch.config import from_flat, models
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan
from clipbatch.stages.batches import Task, item_batches
from clipbatch.stages.flow import Flow
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import ShardPipeline
from clipbatch.types import Encoded, PixelBatch

_TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"width": 64, "heads": 2, "layers": 2},
}
"""In place of the embedded model, whose image tower transformers' CLIP cannot have."""


def random_weights(model: str, folder: Path) -> str:
    """A file of weights for an open_clip model drawn at random: they cost what trained ones cost. The embedded model
    has its own. A file that is in `folder` already is taken as it is."""
    if model == models.DEMO:
        return str(models.weights_file("embedded"))
    torch.manual_seed(0)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that no weights were loaded
    path = folder / f"{model}.safetensors"
    if not path.exists():
        weights = open_clip.create_model(model).state_dict()
        save_file({name: value.contiguous() for name, value in weights.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return str(path)


def random_model(model: str, folder: Path) -> dict[str, str]:
    """The settings for an open_clip model with weights drawn at random. By a configuration of another name, since
    clipbatch refuses a file of weights for a model whose published weights want images prepared in different ways."""
    if model == models.DEMO:
        return {"model": model}
    config = folder / f"random-{model}.json"
    config.write_text(json.dumps(open_clip.get_model_config(model)))
    return {"model": str(config), "pretrained": random_weights(model, folder)}


def _clip_shape(model: str) -> dict[str, Any]:
    shape: dict[str, Any] = _TINY if model == models.DEMO else open_clip.get_model_config(model)
    return shape


def clip_model(model: str) -> torch.nn.Module:
    """transformers' `CLIPModel` of the shape of an open_clip model, with random weights, in fp32, for evaluation."""
    from transformers import CLIPConfig, CLIPModel

    shape = _clip_shape(model)
    towers = {}
    for tower, heads in (("vision", shape["vision_cfg"]["width"] // 64), ("text", shape["text_cfg"]["heads"])):
        own = shape[f"{tower}_cfg"]
        sizes = {"hidden_size": own["width"], "intermediate_size": 4 * own["width"], "num_attention_heads": heads}
        towers[f"{tower}_config"] = {**sizes, "num_hidden_layers": own["layers"]}
    towers["vision_config"] |= {name: shape["vision_cfg"][name] for name in ("image_size", "patch_size")}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(**towers, projection_dim=shape["embed_dim"])).eval()


def clip_processor(model: str) -> Any:
    """transformers' `CLIPImageProcessor` with CLIP's mean, standard deviation and the model's size."""
    from transformers import CLIPImageProcessor

    side = _clip_shape(model)["vision_cfg"]["image_size"]
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def clip_tokenizer() -> Any:
    """transformers' `CLIPTokenizer` over the vocabulary that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    own = SimpleTokenizer()
    vocabulary = {renamed.get(token, token): number for token, number in own.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks))


def rate(work: Callable[[], int], device: str) -> float:
    """Images/s of `work`, which returns how many images it did; on a GPU, until the GPU is done with them."""
    settle(device)
    begun = time.perf_counter()
    count = work()
    settle(device)
    return count / (time.perf_counter() - begun)


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
    """A planned run, and the product's worker with its model loaded: the very stages of a run."""

    def __init__(
        self, settings: dict[str, Any], out: Path, device: str = "cpu", images: Mapping[str, int] | None = None
    ) -> None:
        """settings: of the run in `out`, which is planned here. images: that `read`, `decode` and `encode` do in a
        round, by these names, taking the run's rows in turn; all of its rows where nothing is said."""
        given = {"labels": "cifar10", "model": models.DEMO, "device": device, **settings}
        self.plan, run, self._device = plan.plan(from_flat(given), out), RunDir(out), device
        self._images = images or {}
        self._worker = ShardPipeline(run, self.plan.fingerprint, device, {}, NoJournal())
        self._tasks = [Task(shard=shard) for shard in range(self.plan.shards)]
        self._read, self._decode, self._encode, *_ = stages = self._worker.stages
        self.threads = ", ".join(f"{stage.name} {stage.threads}" for stage in stages)
        manifest = Manifest(run, self.plan)
        self._items = [
            batch
            for task in self._tasks
            for batch in item_batches(self.plan, manifest, task, manifest.rows(task.shard))
        ]
        self._pixels: list[PixelBatch] = []

    def read(self) -> int:
        """From names to bytes in memory; returns how many images."""
        flow = Flow(self._round(self._items, "read"), [self._read])
        return sum(isinstance(slot, Encoded) for batch in flow for slot in batch.slots)

    def decode(self) -> int:
        """From names to pixels; returns how many images."""
        flow = Flow(self._round(self._items, "decode"), [self._read, self._decode])
        return sum(len(batch.outcomes) for batch in flow)

    def encode(self) -> int:
        """From pixels that lie ready to embeddings; returns how many images."""
        self._pixels = self._pixels or list(Flow(self._items[:8], [self._read, self._decode]))
        flow = Flow(self._round(self._pixels, "encode"), [self._encode])
        return sum(len(batch.outcomes) for batch in flow)

    def run(self) -> int:
        """From names to published Parquet; returns how many images were fine. The parts of the last round are replaced
        by the same ones."""
        return sum(written.rows - written.bad.total() for written in self._worker.label(self._tasks))

    def rate(self, work: Callable[[], int]) -> Callable[[], float]:
        """Images/s of one of the above."""

        def images_per_s() -> float:
            torch.set_num_threads(1)  # as `Encode` sets it on a CPU: each of its lanes is a core
            return rate(work, self._device)

        return images_per_s

    def _round(self, batches: list[Any], what: str) -> Any:
        count = self._images.get(what)
        return batches if count is None else islice(cycle(batches), max(1, count // self.plan.batch_size))
