"""Images against their own captions: how near to open_clip's cosine, at what cost, and what reading sidecars takes.

    python benchmarks/captions.py pairs --cifar CIFAR_DIR [--report PATH]
    python benchmarks/captions.py speed [FOLDER] [--report PATH]
    python benchmarks/captions.py sidecars [--report PATH]

`pairs` makes 5,000 pairs of CIFAR-10's test pictures (CIFAR_DIR/test/<class>/*.jpg, made by scripts/cifar10.py) and
sentences from their class; 200 of them are odd: null, empty, 400 words, emoji, Arabic, not UTF-8, and equal ones. It
runs them with `--reference`, by one worker and by two, with the embedded model and with small models of random weights
of the CLIP and SigLIP families, and compares each similarity with open_clip's own cosine of that pair.
Nothing is timed or drawn at random.

`speed` labels the photographs in turn with and without captions of 16 tokens, with ViT-B-32 in random weights.

`sidecars` plans a folder of small files with and without a .txt beside each, from a warm page cache.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file

import harness
from clipbatch.config import models
from harness import Benchmark
from processes import run_clipbatch, run_report, scratch_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FAMILIES = ("clipbatch-demo", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2")
_LIMIT = 1e-5


def _pictures(folder: Path, count: int) -> list[Path]:
    """`count` pictures, the classes in turn."""
    classes = [sorted(one.glob("*.jpg")) for one in sorted(folder.iterdir()) if one.is_dir()]
    pictures = list(itertools.islice(itertools.chain(*zip(*classes, strict=False)), count))
    if len(pictures) < count:
        raise SystemExit(f"{folder} holds {len(pictures)} pictures, and {count} are needed: see scripts/cifar10.py")
    return pictures


def _sentences(pictures: list[Path], odd: dict[bytes | None, str | None]) -> list[bytes | None]:
    """A sentence from each picture's class; every 25th caption is one of `odd`."""
    kinds = list(odd)
    forms = ("a photo of a {}", "this is a small {} in a picture, number {}", "{}", "one {} and nothing else, {} times")
    return [
        kinds[number // 25 % len(kinds)]
        if number % 25 == 7
        else forms[number % 4].format(path.parent.name, number).encode()
        for number, path in enumerate(pictures)
    ]


def pairs(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The largest difference to open_clip's cosine, for each model."""
    from tests.support.captions import ODD, pairwise, reason
    from tests.support.families import write_model

    open_clip.add_model_config(models.config_file(models.DEMO))
    pictures = _pictures(args.cifar.resolve() / "test", args.pairs)
    captions = _sentences(pictures, ODD)
    result: dict[str, dict[str, Any]] = {}
    with scratch_folder() as scratch:
        table = pa.table({"image": [str(path) for path in pictures], "text": pa.array(captions, pa.binary())})
        pq.write_table(table, scratch / "pairs.parquet")
        for family in args.models.split(","):
            name, loading = family, {"pretrained": models.weights_file("embedded")}
            if family != models.DEMO:
                (scratch / family).mkdir()
                write_model(scratch / family, family, text_scale=4)
                name, loading = f"local-dir:{scratch / family}", {}
            sizes = ("--batch-size", 32, "--shard-size", 512)
            options = ("--model", name, "--reference", *sizes, "--caption-column", "text", "--device", "cpu", "--quiet")
            outs = [scratch / f"{family}-{workers}" for workers in (1, 2)]
            for workers, out in enumerate(outs, 1):
                run_clipbatch("run", scratch / "pairs.parquet", *options, "--workers", workers, "--out", out)
            parts = [{part.name: part.read_bytes() for part in (out / "parts").iterdir()} for out in outs]
            rows = pa.concat_tables([pq.read_table(part) for part in sorted(outs[0].glob("parts/part-*.parquet"))])
            at = np.flatnonzero(rows["caption_similarity"].is_valid().to_numpy())
            wanted = [row for row, caption in enumerate(captions) if reason(caption) is None]
            if at.tolist() != wanted:
                raise SystemExit(f"{family}: {len(at)} pairs were compared, and {len(wanted)} can be")
            expected = pairwise(name, [pictures[row] for row in at], [captions[row] or b"" for row in at], **loading)
            off = np.abs(rows["caption_similarity"].to_numpy()[at] - expected)
            result[family] = {
                "compared": len(at),
                "null": len(captions) - len(at),
                "largest": float(off.max()),
                "mean": float(off.mean()),
                "spread": float(expected.std()),
                "same_bytes": parts[0] == parts[1],
            }
    body = harness.table(
        ("model", "compared", "null", "largest difference", "mean", "spread of cosines", "1 and 2 workers"),
        [
            [
                family,
                f"{its['compared']:,}",
                f"{its['null']:,}",
                f"{its['largest']:.1e}",
                f"{its['mean']:.1e}",
                f"{its['spread']:.3f}",
                "same bytes" if its["same_bytes"] else "OTHER BYTES",
            ]
            for family, its in result.items()
        ],
    )
    return f"{len(pictures):,} pairs of CIFAR-10's test pictures, fp32.\n\n{body}", {"pairs": len(pictures), **result}


def _rate(options: list[object], out: Path) -> dict[str, float]:
    """images/s of a run, without starting and loading, and the seconds of processor time for 1,000 images."""
    report, took = run_report("run", *options, "--out", out)
    return {"images/s": report["this_run"]["images_per_s"], "CPU s": 1000 * took.cpu_s / report["rows"]}


def speed(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """images/s with captions over images/s without, ViT-B-32."""
    photos = [path for path in sorted(args.folder.resolve().rglob("*")) if path.suffix in (".jpg", ".png")]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    words = ("red", "old", "small", "quiet", "big", "happy", "lost", "new", "soft", "green")
    captions = []
    for number in range(args.images):  # no two alike, of 12 to 20 tokens
        some = [words[number // 10**place % 10] for place in range(4)] + list(words[: max(0, number % 7 - 3)])
        captions.append(f"a photo of a {' '.join(some)} dog and two cats outside")
    lengths = [len(tokenizer.encode(caption)) + 2 for caption in captions]
    with scratch_folder() as scratch:
        if args.model == "ViT-B-32":
            weights = scratch / "weights.safetensors"
            save_file(open_clip.create_model(args.model).state_dict(), weights)
            model: list[object] = ["--model", args.model, "--pretrained", weights]
        else:
            model = ["--model", args.model]
        images = [str(path) for path, _ in zip(itertools.cycle(photos), range(args.images), strict=False)]
        pq.write_table(pa.table({"image": images, "text": captions}), scratch / "pairs.parquet")
        common = [scratch / "pairs.parquet", *model, "--labels", "cat,dog", *(["--device", args.device])]
        number = itertools.count()
        contestants = {
            "without captions": lambda: _rate(common, scratch / f"out-{next(number)}"),
            "with captions": lambda: _rate([*common, "--caption-column", "text"], scratch / f"out-{next(number)}"),
        }
        figures = harness.take_turns(contestants, args.rounds)
    wanted = {"with captions / without captions": "at least 0.85"}
    ratio, ratios = harness.compare(figures["images/s"], wanted)
    columns = {"images/s": (figures["images/s"], 2), "CPU s for 1,000 images": (figures["CPU s"], 1)}
    body = f"{args.images:,} images, captions of {np.mean(lengths):.1f} tokens (with their beginning and end).\n\n"
    body += f"{harness.spread_table('run', columns)}\n\n{ratio}"
    return body, {"tokens": float(np.mean(lengths)), **harness.spreads(figures["images/s"]), **ratios}


def sidecars(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Seconds of `clipbatch plan` for a folder, with and without reading a caption beside each image."""
    with scratch_folder() as scratch:
        for number in range(args.images):
            folder = scratch / "in" / f"{number // 10_000:05}"
            if not number % 10_000:
                folder.mkdir(parents=True)
            (folder / f"{number:09}.jpg").touch()
            (folder / f"{number:09}.txt").write_text(f"a photo of thing number {number}, and of nothing else")
        common = ["plan", scratch / "in", "--model", models.DEMO, "--embeddings"]
        number_of = itertools.count()

        def plan(*options: object) -> float:
            out = scratch / f"out-{next(number_of)}"
            return run_clipbatch(*common, *options, "--out", out).wall_s

        contestants = {"without": plan, "with sidecars": lambda: plan("--caption-column", "txt")}
        figures = harness.interleave(contestants, args.rounds)
    more = [b - a for a, b in zip(figures["without"], figures["with sidecars"], strict=True)]
    each_us = harness.spread([1e6 * seconds / args.images for seconds in more])
    at_10_million = each_us.median * 10
    body = harness.spread_table("plan", {"seconds": (figures, 2)})
    body += (
        f"\n\n{args.images:,} images in folders of 10,000, on a local disk whose files are in the page cache: "
        f"{each_us.text(1)} microseconds more for each image. Extrapolated, not measured: {at_10_million:,.0f} s for "
        "10 million. On a disk or a network file system it is the latency of a file over 16 threads."
    )
    return body, {"images": args.images, "us_an_image": each_us, **harness.spreads(figures)}


BENCHMARKS = {
    "pairs": Benchmark(
        title="Captions compared with open_clip's cosines",
        expected=f"differences of at most {_LIMIT:g} in fp32, and the same bytes by one worker and by two.",
        measure=pairs,
        options={
            "cifar": (Path("cifar10"), "the folder that scripts/cifar10.py fills"),
            "pairs": (5000, "pairs"),
            "models": (",".join(FAMILIES), "names, of which all but clipbatch-demo get random weights"),
        },
    ),
    "speed": Benchmark(
        title="The cost of captions, {model}",
        expected="at least 0.85 of the images/s without captions: 16 tokens take about an eighth of the "
        "multiplications that an image takes in ViT-B-32.",
        measure=speed,
        options={
            "model": ("ViT-B-32", "ViT-B-32 gets random weights"),
            "images": (1024, "images of a run"),
            "rounds": (5, "measured rounds"),
            "device": ("cpu", "cpu or cuda"),
        },
        folder=True,
    ),
    "sidecars": Benchmark(
        title="Captions in files beside the images: planning",
        expected="tens of microseconds an image from a warm page cache.",
        measure=sidecars,
        options={"images": (100_000, "images"), "rounds": (3, "measured rounds")},
    ),
}

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    harness.run(__doc__ or "", BENCHMARKS)
