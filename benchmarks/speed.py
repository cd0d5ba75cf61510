"""How fast clipbatch is: beside what its parts allow, beside others, and beside the script that everybody writes first.

    python benchmarks/speed.py run [FOLDER] [--model M [--pretrained F]] [--rounds N] [--images N]
    python benchmarks/speed.py peers [FOLDER] [--device cpu|cuda:0] [--model M] [--rounds N] [--images N]
    python benchmarks/speed.py steps [FOLDER] [--device cpu|cuda:0] [--models M,M] [--rounds N]
    python benchmarks/speed.py preprocess [FOLDER] [--device cpu|cuda:0] [--counts N,N] [--rounds N]

All contestants get the same photographs, model and precision, and take turns.

run, on the CPU, also where there is a GPU; images a second:
    decode        our read and decode stages alone, in a `Flow`, with the threads that a run gives them
    encode        our encode stage alone, on pixels that lie ready
    run           the product: a `Worker` over a planned run, from file names to published Parquet, the model loaded
    peer decode   open_clip's transform (Pillow) in a torch DataLoader with a worker process for every core
    peer run      the same loader, then open_clip's model and softmax scores, with torch's own number of threads or
                  with one, whichever was faster in the warm-up: more than one compete with the loader's processes
    Decoding and encoding share the cores, so `run` can be no faster than the ceiling 1 / (1/decode + 1/encode). The
    peer's processes live through all rounds and the first batch of each is off its clock; our flows start on it.
peers: `run` beside every recipe of peers.py; images a second.
steps, from a process for each image to clipbatch, one change at a time; seconds an image.
preprocess, from JPEG bytes in memory to normalised pixels on the device, by the ways of preprocessing.py; photographs
    of 50 or 5,000 names, and pictures of CIFAR's size (32 x 32).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

import harness
from clipbatch.config import LabelSettings, hardware
from clipbatch.config import models as catalog
from clipbatch.config.auto import one_minute_shard_size
from clipbatch.config.labels import load
from clipbatch.stages import memory
from clipbatch.tools import models as speeds
from contestants import Ours, random_model, random_weights, settle
from fixtures import about, list_names, photographs
from harness import Benchmark
from peers import PEERS, OpenClip, Scorer, Subject
from preprocessing import preprocess
from processes import run_clipbatch, run_command, scratch_folder

BATCH = 32
WANTED = {"run / ceiling": ">= 0.9", "decode / peer decode": ">= 2.3, aim 3", "run / peer run": "> 1"}


def labels_of(shipped: str) -> list[str]:
    """The labels of a shipped set."""
    (group,) = load(LabelSettings(labels=shipped)).groups
    return group.names


def precision_on(device: str) -> str:
    """What a run takes by default."""
    return "fp16" if device != "cpu" else "bf16" if hardware.has_fast_bf16() else "fp32"


# run and peers


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Our parts and the whole, beside open_clip's own tools."""
    memory.keep_freed()  # as a worker has it, and the peer gets it too
    photos, threads = photographs(args.folder), torch.get_num_threads()
    models = {args.model: args.pretrained} if args.model else {catalog.DEMO: None, "ViT-B-32": "random"}
    parts, results = [about(photos, args.rounds)], []
    for model, pretrained in models.items():
        with scratch_folder() as scratch:
            text, result = run_model(model, pretrained, photos, args, threads, scratch)
        speeds.note(model, result["rates"]["run"].median, result["date"])
        parts.append(text)
        results.append(result)
    started = harness.spread(harness.interleave({"help, s": lambda: run_clipbatch("--help").wall_s}, 7)["help, s"])
    parts.append(f"`clipbatch --help` in a fresh process: {started.text(3)} s, 7 times.")
    return "\n\n".join(parts), {"models": results, "help_s": started}


def run_model(
    model: str, pretrained: str | None, photos: list[Path], args: argparse.Namespace, threads: int, scratch: Path
) -> tuple[str, dict[str, Any]]:
    weights = random_weights(model, scratch) if pretrained == "random" else pretrained
    precision = precision_on("cpu")
    minutes = [one_minute_shard_size(False, cost, precision, BATCH) for cost in (0, catalog.gflop(model))]
    decode, whole = (max(1, (args.images or max(512, minute // 8)) // BATCH) * BATCH for minute in minutes)
    images = {"decode": decode, "encode": whole, "run": whole, "peer decode": decode, "peer run": whole}
    listed = list_names(photos, whole, scratch / "photos.txt")
    settings = {"model": model, "pretrained": weights, "precision": precision, "batch_size": BATCH}
    ours = Ours({**settings, "inputs": [str(listed)]}, scratch / "run", images=images)
    subject = Subject(
        model=model,
        weights=catalog.weights_file(ours.plan.settings["pretrained"]),
        photos=photos,
        images=whole,
        device="cpu",
        precision=precision,
        batch=BATCH,
        labels=labels_of("cifar10"),
    )
    peer = OpenClip(subject, threads, decoded=decode)
    work = [ours.rate(ours.decode), ours.rate(ours.encode), ours.rate(ours.run), peer.decode, peer.run]
    rates = harness.interleave(dict(zip(images, work, strict=True)), args.rounds)
    rates["ceiling"] = [1 / (1 / a + 1 / b) for a, b in zip(rates["decode"], rates["encode"], strict=True)]
    compared, ratios = harness.compare(rates, WANTED)
    measured = harness.spread_table("", {"images/s": (rates, 0)})
    used = f"{ours.threads}; peer: loader {hardware.cores()} processes, encode {peer.threads}"
    counts = ", ".join(f"{name} {count}" for name, count in images.items())
    text = f"## {model}, {precision}, batch {BATCH}\n\nThreads: {used}. Images in a round: {counts}."
    result = {"model": model, "precision": precision, "threads": used, "images": images, "ratios": ratios}
    result |= {"rates": harness.spreads(rates), "date": harness.machine()["date"]}
    return f"{text}\n\n{measured}\n\n{compared}", result


def peers(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """clipbatch beside every peer, end to end."""
    photos = photographs(args.folder)
    with scratch_folder() as scratch:
        listed = list_names(photos, args.images, scratch / "photos.txt")
        settings = {**random_model(args.model, scratch), "inputs": [str(listed)], "batch_size": BATCH}
        ours = Ours(settings, scratch / "run", args.device)
        subject = Subject(
            model=args.model,
            weights=random_weights(args.model, scratch),
            photos=photos,
            images=args.images,
            device=args.device,
            precision=precision_on(args.device),
            batch=BATCH,
            labels=labels_of("cifar10"),
        )
        contestants = {"run": ours.rate(ours.run), **{name: peer(subject) for name, peer in PEERS.items()}}
        rates = harness.interleave(contestants, args.rounds)
    compared, ratios = harness.compare(rates, {f"run / {name}": "> 1" for name in PEERS})
    body = f"{about(photos, args.rounds)} {args.images} images in a round, {args.model}, weights drawn at random.\n\n"
    body += harness.spread_table("", {"images/s": (rates, 0)})
    return f"{body}\n\n{compared}", {"images_per_s": harness.spreads(rates), "ratios": ratios}


# steps

GPU_STEP = "decoded on the GPU"
ALONE = """
import sys, open_clip, torch
from PIL import Image
model, weights, device, config, path, *labels = sys.argv[1:]
if config: open_clip.add_model_config(config)
net, _, transform = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
net.eval()
with torch.inference_mode():
    tokens = open_clip.get_tokenizer(model)([f"a photo of a {label}." for label in labels])
    text = net.encode_text(tokens.to(device), normalize=True)
    image = net.encode_image(transform(Image.open(path))[None].to(device), normalize=True)
    print((net.logit_scale.exp() * image @ text.T).softmax(-1).argmax().item())
"""


def steps(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Seconds an image after each change."""
    photos, result = photographs(args.folder), {}
    tables = [about(photos, args.rounds)]
    for model in args.models.split(","):
        with scratch_folder() as scratch:
            figures = harness.interleave(changes(model, photos, args, scratch), args.rounds)
        result[model], names = harness.spreads(figures), list(figures)
        before = dict(zip(names[1:], names, strict=False))
        rows = []
        for name in names:
            gained = harness.ratios(figures[before[name]], figures[name]).text(2) if name in before else ""
            total = harness.ratios(figures[names[0]], figures[name]).text(1)
            rows.append([name, result[model][name].text(4), gained, total])
        rows += [] if GPU_STEP in figures else [[GPU_STEP, "not measured", "", ""]]
        header = (model, "seconds an image", "times faster than the step before", "than the first")
        tables.append(harness.table(header, rows))
    return "\n\n".join(tables), {"device": args.device, "s_per_image": result}


def changes(model: str, photos: list[Path], args: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], float]]:
    """Each step as a function that returns its seconds an image."""
    many, few = labels_of("documents-27"), labels_of("documents-10")
    device, half, weights = args.device, precision_on(args.device), random_weights(model, scratch)
    subject = Subject(
        model=model,
        weights=weights,
        photos=photos,
        images=args.images,
        device=device,
        precision="fp32",
        batch=args.batch,
        labels=few,
    )
    full, halved = Scorer(subject), Scorer(dataclasses.replace(subject, precision=half))
    text_many = full.text(many)
    config = str(catalog.config_file(model)) if model == catalog.DEMO else ""
    singles = list(islice(cycle(photos), args.singles))

    def alone() -> None:
        run_command(
            [sys.executable, "-W", "ignore", "-c", ALONE, model, weights, device, config, str(photos[0]), *many]
        )

    def in_batches(scorer: Scorer) -> None:
        paths = subject.paths()
        for at in range(0, len(paths), args.batch):
            scorer.files(paths[at : at + args.batch])

    def ours(decoder: str) -> Callable[[], float]:
        listed = list_names(photos, args.images, scratch / f"{decoder}.txt")
        settings = {"model": model, "pretrained": weights, "batch_size": args.batch, "precision": half}
        settings |= {"inputs": [str(listed)], "decoder": decoder, "labels": "documents-10"}
        contestant = Ours(settings, scratch / decoder, device)
        images_per_s = contestant.rate(contestant.run)
        return lambda: 1 / images_per_s()

    def each(work: Callable[[Path], object]) -> Callable[[], float]:
        return per_image(lambda: [work(path) for path in singles], len(singles), device)

    return {
        "a process for each image": per_image(alone, 1, device),
        "model kept": each(lambda path: full.files([path], full.text(many))),
        "labels encoded once": each(lambda path: full.files([path], text_many)),
        "10 labels instead of 27": each(lambda path: full.files([path])),
        f"batches of {args.batch}": per_image(lambda: in_batches(full), args.images, device),
        f"half precision ({half})": per_image(lambda: in_batches(halved), args.images, device),
        "pipelined (clipbatch)": ours("torchvision"),
        **({GPU_STEP: ours("dali")} if device != "cpu" else {}),
    }


def per_image(work: Callable[[], object], images: int, device: str) -> Callable[[], float]:
    """Seconds that `work` takes for each of its images, until the device has done it."""

    def settled() -> None:
        work()
        settle(device)

    def seconds() -> float:
        torch.set_num_threads(hardware.cores())
        settle(device)
        return harness.timed(settled)() / images

    return seconds


DEVICE = {"device": ("cpu", "cpu or cuda:0")}
BENCHMARKS = {
    "run": Benchmark(
        title="Speed on the CPU",
        expected="run / ceiling at least 0.9, since the stages share the cores and little else is done; decode / peer "
        "decode at least 2.3, aim 3; run / peer run above 1; `clipbatch --help` well below a second, since it imports "
        "no torch.",
        measure=run,
        folder=True,
        options={
            "model": (str, "measure this one alone (default: clipbatch-demo, then ViT-B-32 with random weights)"),
            "pretrained": (str, "its weights, as for clipbatch run, or `random`"),
            "rounds": (5, "that count"),
            "images": (0, "in a round of each; 0 for some seconds of work"),
        },
    ),
    "peers": Benchmark(
        title="clipbatch beside others, on {device}",
        expected="run / peer above 1 everywhere; most beside Hugging Face's pipeline one by one, which encodes "
        "the labels for each image. On a CPU the encoder is most of it for a large model, and all share it.",
        measure=peers,
        folder=True,
        options={**DEVICE, "model": ("ViT-B-32", ""), "rounds": (3, "that count"), "images": (256, "in a round")},
    ),
    "steps": Benchmark(
        title="One change at a time, on {device}",
        expected="Loading the model for each image costs most; then encoding the labels each time. Once their features "
        "are kept, 10 labels cost what 27 do, since scores are one small product. ViT-B-16 is slower than ViT-B-32, "
        "about four times in the encoder: its patches are smaller, so there are four times as many.",
        measure=steps,
        folder=True,
        options={
            **DEVICE,
            "models": ("ViT-B-32,ViT-B-16", "with random weights"),
            "rounds": (3, "that count"),
            "batch": (32, "images"),
            "images": (128, "in a round of the steps that work in batches"),
            "singles": (8, "in a round of the steps that do one at a time"),
        },
    ),
    "preprocess": Benchmark(
        title="Preparing images, on {device}",
        expected="On a CPU, decoding is most of it for photographs, and the rate does not depend on how many there "
        "are; CLIPProcessor is the slowest. For pictures of 32 x 32, enlarging and normalising are most of it.",
        measure=preprocess,
        folder=True,
        options={**DEVICE, "counts": ("50,5000", "of images"), "rounds": (3, "that count")},
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
