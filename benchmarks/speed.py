"""How fast clipbatch labels photographs on the CPU, beside what its parts allow and beside open_clip's own tools.

    python benchmarks/speed.py [FOLDER] [--model M [--pretrained F]] [--rounds N] [--images N] [--report PATH]

Same photographs, model, precision (bf16 where the CPU multiplies it in hardware, else fp32) and batch for all, in
turns, images a second:

    decode       our read and decode stages alone, in a `Flow`, with the threads that a run gives them
    encode       our encode stage alone, on pixels that lie ready
    run          the product: a `Worker` over a planned run, from file names to published Parquet, the model loaded
                 before the clock starts; each photograph is named as often as a round of several seconds takes
    peer decode  open_clip's transform (Pillow) in a torch DataLoader with a worker process for every core
    peer run     the same loader, then open_clip's model and softmax scores, with torch's own number of threads or
                 with one, whichever was faster in the warm-up: more than one compete with the loader's processes

Decoding and encoding share the cores, so `run` can be no faster than the ceiling 1 / (1/decode + 1/encode): want 0.9
of it. `decode` should be 2.3 times `peer decode`, aim 3. The peer's processes live through all rounds and the
first batch of each is off its clock; our flows start on the clock. Last, `clipbatch --help` in fresh processes: it
imports neither torch nor DALI. All of it on the CPU, also where there is a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
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
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import clipbatch
import timing
from clipbatch import api, catalog, hardware
from clipbatch.config import from_flat
from clipbatch.encode.model import DTYPES
from clipbatch.flow import Flow, Stage
from clipbatch.journal import Journal
from clipbatch.manifest import Manifest
from clipbatch.plan import minute_of_work
from clipbatch.run import Task, Worker, item_batches
from clipbatch.rundir import Plan, RunDir
from clipbatch.types import PixelBatch

BATCH = 32
DEMO_IMAGES = Path(clipbatch.__file__).parent / "demo" / "images"
SHARED_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
EXPECTED = (
    "run / ceiling at least 0.9, since the stages share the cores and little else is done; decode / peer decode at "
    "least 2.3, aim 3; run / peer run above 1; `clipbatch --help` well below a second, since it imports no torch."
)
WANTED = {"run / ceiling": ">= 0.9", "decode / peer decode": ">= 2.3, aim 3", "run / peer run": "> 1"}


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


class Ours:
    """A planned run, and the product's worker with its model loaded."""

    def __init__(self, given: dict[str, Any], photos: list[Path], images: dict[str, int], folder: Path) -> None:
        """images: in a round, by contestant. folder: empty."""
        self._images = images
        listing = folder / "photos.txt"
        listing.write_text("".join(f"{path}\n" for path in islice(cycle(photos), images["run"])))
        own = {"inputs": [str(listing)], "labels": "cifar10", "batch_size": BATCH, "device": "cpu"}
        self.plan: Plan = api.plan(from_flat({**own, **given}), folder / "run")
        run = RunDir(folder / "run")
        self._journal = Journal()
        self._worker = Worker(run, run.plan().fingerprint, "cpu", {}, self._journal)
        self._tasks = [Task(shard=shard) for shard in range(self.plan.shards)]
        self._read, self._decode, self._encode, *_ = stages = self._worker.stages  # the very ones of a run
        self.threads = ", ".join(f"{stage.name} {stage.threads}" for stage in stages)
        manifest = Manifest(run, self.plan)
        self._items = [batch for task in self._tasks for batch in item_batches(self.plan, manifest, task)]
        self._pixels = list(Flow(self._items[:8], self._to_pixels))

    @property
    def _to_pixels(self) -> list[Stage]:
        """Reading and decoding, and what writing does at the end of a run: leave the journal."""
        return [self._read, self._decode, Stage(name="leave", work=self._leave)]

    def _leave(self, batch: PixelBatch) -> PixelBatch:
        self._journal.leave(batch.source.start)
        return batch

    def decode(self) -> float:
        """Images/s from file names to pixels."""
        batches = islice(cycle(self._items), self._images["decode"] // BATCH)
        return _rate(lambda: sum(len(done.outcomes) for done in Flow(batches, self._to_pixels)))

    def encode(self) -> float:
        """Images/s from pixels to embeddings."""
        batches = islice(cycle(self._pixels), self._images["encode"] // BATCH)
        return _rate(lambda: sum(len(done.outcomes) for done in Flow(batches, [self._encode])))

    def run(self) -> float:
        """Images/s of the whole run; the parts of the last round are replaced by the same ones."""
        return _rate(lambda: sum(written.rows - written.bad for written in self._worker.label(self._tasks)))


def _rate(work: Callable[[], int]) -> float:
    """work: returns how many images it did."""
    torch.set_num_threads(1)  # as `Encode` sets it: each of its lanes is a core
    begun = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - begun)


class Photos(Dataset[Tensor]):
    """open_clip's own way from a file to pixels."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor], images: int) -> None:
        self._paths, self._transform, self._images = paths, transform, images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index % len(self._paths)]) as image:
            return self._transform(image)


class Peer:
    """open_clip's transform and model, fed by torch's DataLoader."""

    def __init__(self, plan: Plan, photos: list[Path], images: dict[str, int], threads: int) -> None:
        """images: in a round, by contestant. threads: torch's own number of them."""
        name, weights = catalog.openclip_name(plan.settings["model"]), catalog.weights_file(plan.settings["pretrained"])
        precision = plan.settings["precision"]
        made = open_clip.create_model_and_transforms(name, pretrained=weights, precision=precision)
        self._model, transform = made[0].eval(), made[2]
        self._dtype, self.threads, self._fixed = DTYPES[precision], threads, False
        (labels,), tokenizer = plan.labels.groups, open_clip.get_tokenizer(name)
        self._text_DL = open_clip.build_zero_shot_classifier(self._model, tokenizer, labels.names, labels.templates)
        cores = hardware.cores()
        how: dict[str, Any] = {"batch_size": BATCH, "num_workers": cores, "persistent_workers": True}
        self._loaders = {
            name: DataLoader(Photos(photos, transform, count + cores * BATCH), **how) for name, count in images.items()
        }

    def decode(self) -> float:
        """Images/s from file names to normalised pixels in this process."""
        return self._rate("peer decode", lambda pixels_BCHW: pixels_BCHW, 1)

    def run(self) -> float:
        """Images/s from file names to scores in memory; nothing is written."""
        if not self._fixed:
            rates = {number: self._rate("peer run", self._score, number) for number in (1, self.threads)}
            self.threads, self._fixed = max(rates, key=rates.__getitem__), True
        return self._rate("peer run", self._score, self.threads)

    @torch.inference_mode()
    def _score(self, pixels_BCHW: Tensor) -> Tensor:
        image_BD = self._model.encode_image(pixels_BCHW.to(self._dtype), normalize=True)
        return torch.softmax(self._model.logit_scale.exp() * image_BD.float() @ self._text_DL.float(), dim=-1)

    def _rate(self, name: str, work: Callable[[Tensor], Tensor], threads: int) -> float:
        torch.set_num_threads(threads)
        batches = iter(self._loaders[name])
        for _ in range(hardware.cores()):
            work(next(batches))
        begun = time.perf_counter()
        done = sum(len(work(batch)) for batch in batches)
        return done / (time.perf_counter() - begun)


def help_s() -> float:
    """Seconds that `clipbatch --help` takes in a fresh process."""
    begun = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("clipbatch"), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure(given: dict[str, Any], photos: list[Path], args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """All contestants with one model. given: its settings. threads: torch's own number of them."""
    with tempfile.TemporaryDirectory(prefix="clipbatch-speed-") as scratch:
        if given["pretrained"] == "random":
            given["pretrained"] = str(random_weights(given["model"], Path(scratch)))
        given["precision"] = precision = "bf16" if hardware.has_fast_bf16() else "fp32"
        minutes = [minute_of_work(False, cost, precision, BATCH) for cost in (0, catalog.gflop(given["model"]))]
        decode, run = (max(1, (args.images or max(512, minute // 8)) // BATCH) * BATCH for minute in minutes)
        images = {"decode": decode, "encode": run, "run": run, "peer decode": decode, "peer run": run}
        ours = Ours(given, photos, images, Path(scratch))
        peer = Peer(ours.plan, photos, images, threads)
        contestants = dict(zip(images, (ours.decode, ours.encode, ours.run, peer.decode, peer.run), strict=True))
        rates = timing.interleave(contestants, args.rounds)
    rates["ceiling"] = [1 / (1 / a + 1 / b) for a, b in zip(rates["decode"], rates["encode"], strict=True)]
    pairs = {pair: pair.split(" / ") for pair in WANTED}
    return {
        "model": given["model"],
        "precision": precision,
        "threads": f"{ours.threads}; peer: loader {hardware.cores()} processes, encode {peer.threads}",
        "images": images,
        "rates": {name: timing.spread(values) for name, values in rates.items()},
        "ratios": {pair: timing.ratios(rates[over], rates[under]) for pair, (over, under) in pairs.items()},
    }


def tables(found: dict[str, Any]) -> str:
    """What was found for one model, in words."""
    rates = [(name, rate.text(), str(found["images"].get(name, ""))) for name, rate in found["rates"].items()]
    ratios = [(pair, ratio.text(2), WANTED[pair]) for pair, ratio in found["ratios"].items()]
    title = f"## {found['model']}, {found['precision']}, batch {BATCH}"
    measured = timing.table(("", "images/s, median (min-max)", "images a round"), rates)
    compared = timing.table(("ratio within a round", "median (min-max)", "wanted"), ratios)
    return f"{title}\n\nThreads: {found['threads']}.\n\n{measured}\n\n{compared}"


def main() -> None:
    parser = timing.arguments("Measure the speed of clipbatch and of its peer on this machine.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--model", help="measure this one alone (default: clipbatch-demo, then a random ViT-B-32)")
    parser.add_argument("--pretrained", help="its weights, as for clipbatch run, or `random`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="in a round of each contestant (default: some seconds of work)")
    args = parser.parse_args()
    on, threads, photos = timing.machine(), torch.get_num_threads(), photographs(args.folder)
    models = {args.model: args.pretrained} if args.model else {catalog.DEMO: None, "ViT-B-32": "random"}
    found = [measure({"model": m, "pretrained": p}, photos, args, threads) for m, p in models.items()]
    starts = timing.spread(timing.interleave({"help, s": help_s}, 7)["help, s"])
    mean_kb = sum(path.stat().st_size for path in photos) / len(photos) / 1000
    intro = f"{len(photos)} photographs of {mean_kb:.0f} kB on average, {args.rounds} rounds."
    start = f"`clipbatch --help` in a fresh process: {starts.text(3)} s, 7 times."
    body = "\n\n".join([intro, *map(tables, found), start])
    timing.finish("Speed on the CPU", body, EXPECTED, {"machine": on, "models": found, "help_s": starts}, args.report)


if __name__ == "__main__":
    main()
