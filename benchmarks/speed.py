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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import harness as timing
from clipbatch.config import hardware
from clipbatch.config import models as catalog
from clipbatch.config.auto import minute_of_work
from clipbatch.stages import memory
from clipbatch.tools import models as speeds
from contestants import DEMO_IMAGES, SHARED_PHOTOS, Ours, photographs, random_weights
from peers import OpenClip, Subject

BATCH = 32
EXPECTED = (
    "run / ceiling at least 0.9, since the stages share the cores and little else is done; decode / peer decode at "
    "least 2.3, aim 3; run / peer run above 1; `clipbatch --help` well below a second, since it imports no torch."
)
WANTED = {"run / ceiling": ">= 0.9", "decode / peer decode": ">= 2.3, aim 3", "run / peer run": "> 1"}


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
        ours = Ours({**given, "batch_size": BATCH}, photos, images, Path(scratch))
        weights, (labels,) = ours.plan.settings["pretrained"], ours.plan.labels.groups
        subject = Subject(
            model=given["model"],
            weights=catalog.weights_file(weights),
            photos=photos,
            images=run,
            device="cpu",
            precision=precision,
            batch=BATCH,
            labels=labels.names,
        )
        peer = OpenClip(subject, threads, decoded=decode)
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
    memory.keep_freed()  # as a worker has it, and the peer gets it too
    on, threads, photos = timing.machine(), torch.get_num_threads(), photographs(args.folder)
    models = {args.model: args.pretrained} if args.model else {catalog.DEMO: None, "ViT-B-32": "random"}
    found = [measure({"model": m, "pretrained": p}, photos, args, threads) for m, p in models.items()]
    for made in found:
        speeds.note(made["model"], made["rates"]["run"].median, on["date"])
    starts = timing.spread(timing.interleave({"help, s": help_s}, 7)["help, s"])
    mean_kb = sum(path.stat().st_size for path in photos) / len(photos) / 1000
    intro = f"{len(photos)} photographs of {mean_kb:.0f} kB on average, {args.rounds} rounds."
    start = f"`clipbatch --help` in a fresh process: {starts.text(3)} s, 7 times."
    body = "\n\n".join([intro, *map(tables, found), start])
    timing.finish("Speed on the CPU", body, EXPECTED, {"machine": on, "models": found, "help_s": starts}, args.report)


if __name__ == "__main__":
    main()
