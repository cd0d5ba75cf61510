"""How fast are saved embeddings scored with new labels, against labelling the images again?

    python benchmarks/rescore.py [--images 3000] [--rows 1000000] [--vit-images 600] [--vit-rows 300000] [--report PATH]

For each model: `clipbatch run --embeddings` over the demo's photographs, named again and again, gives the rate of a run
over images. `clipbatch rescore` of a run with so many rows gives the other; its source is written here by the same
writer, with random unit vectors for embeddings, since labelling a million images takes hours. Both rates are of the
report: rows by the seconds of the whole command without those in which the model is loaded. ViT-B-32 has random
weights, which cost what trained ones cost.

A rescoring reads every byte of the source's parts, checks their seals, multiplies, and writes as many rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clipbatch.config import from_flat
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.runs import plan as planner
from clipbatch.runs import run as runner
from clipbatch.stages.write import Write
from clipbatch.types import Decoded, ItemBatch, ScoredBatch
from harness import arguments, finish, machine, ratios, spread, table

DEMO_IMAGES = Path(runner.__file__).parent / "demo" / "images"
BATCH = 1024
EXPECTED = "100 times the rate of a run over the images, or more"


def cli(*args: object) -> dict[str, Any]:
    """`clipbatch ARGS --json` as a user starts it; what it reports on this run."""
    command = [sys.executable, "-m", "clipbatch", *map(str, args), "--json", "--quiet"]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(made.stdout)["this_run"]
    return found


def random_weights(folder: Path) -> Path:
    """A ViT-B-32 as it is before training."""
    import open_clip
    import safetensors.torch

    path = folder / "vit.safetensors"
    safetensors.torch.save_model(open_clip.create_model("ViT-B-32"), str(path))
    return path


def manifest(folder: Path, rows: int) -> Path:
    """A list of `rows` names of the demo's healthy photographs."""
    names = sorted(str(path) for path in DEMO_IMAGES.glob("*-?.jpg"))
    path = folder / f"{rows}.txt"
    path.write_text("\n".join(names[number % len(names)] for number in range(rows)))
    return path


def make_source(like: Path, out: Path, listed: Path) -> None:
    """A finished run over `listed` in `out`, of the model of the run `like`, with random embeddings."""
    given = RunDir(like).plan().run_settings()
    fields = {"inputs": [str(listed)], "batch_size": BATCH, "shard_size": 64 * BATCH}
    plan: Plan = planner.plan(from_flat(given.flat() | fields), out)
    run = RunDir(out)
    facts = RunDir(like).model_facts()
    assert facts
    fingerprint = run.freeze_model(facts)
    run.freeze("text.npy", (like / "text.npy").read_bytes())
    width = np.load(like / "text.npy").shape[1]
    write = Write(run, plan, fingerprint=fingerprint, score=facts["score"], embedding=width)
    rng = np.random.default_rng(0)
    image_BD = rng.normal(size=(BATCH, width)).astype(np.float32)
    image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
    scores_BL = np.full((BATCH, len(plan.labels.names)), 1 / len(plan.labels.names), np.float32)
    outcome = Decoded(width=640, height=480, decoder="torchvision")
    from clipbatch.rundir.manifest import Manifest
    from clipbatch.rundir.schema import LISTING

    rows_of = Manifest(run, plan)
    for shard in range(plan.shards):
        rows = rows_of.rows(shard).drop_columns(LISTING)
        for at in range(0, rows.num_rows, BATCH):
            here = rows.slice(at, BATCH)
            last = at + here.num_rows == rows.num_rows
            source = ItemBatch(shard=shard, start=here["row_id"][0].as_py(), items=(), rows=here, last=last)
            count = here.num_rows
            write(
                ScoredBatch(
                    source=source,
                    outcomes=(outcome,) * count,
                    scores_BL=scores_BL[:count],
                    image_BD=image_BD[:count].astype(np.float16),
                )
            )


def measure(folder: Path, name: str, model: list[str], images: int, rows: int, rounds: int) -> dict[str, Any]:
    """Both rates, images or rows a second, round by round."""
    labelled, again = [], []
    bottlenecks = set()
    for number in range(rounds):
        out = folder / f"{name}-{number}"
        command = ("run", manifest(folder, images), *model, "--labels", "cifar10", "--embeddings", "--device", "cpu")
        labelled.append(cli(*command, "--out", out)["images_per_s"])
        source = folder / f"{name}-source"
        if not source.exists():
            make_source(out, source, manifest(folder, rows))
        new = folder / f"{name}-new-{number}"
        made = cli("rescore", source, "--labels", "documents-27", "--device", "cpu", "--out", new)
        assert made["rows"] == rows
        again.append(made["images_per_s"])
        bottlenecks.add(made["bottleneck"])
        print(f"  {name}: {labelled[-1]:.0f} images/s, {again[-1]:.0f} rows/s", file=sys.stderr, flush=True)
    return {"labelled": labelled, "again": again, "bottleneck": ", ".join(sorted(bottlenecks))}


def main() -> None:
    """Parse, measure, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=3_000, help="labelled with the embedded model")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rescored, embeddings of 96 numbers")
    parser.add_argument("--vit-images", type=int, default=600, help="labelled with ViT-B-32")
    parser.add_argument("--vit-rows", type=int, default=300_000, help="rescored, embeddings of 512 numbers")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    on = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        weights = ["--model", "ViT-B-32", "--pretrained", str(random_weights(folder))]
        found = {
            "embedded model": measure(
                folder, "demo", ["--model", "clipbatch-demo"], given.images, given.rows, given.rounds
            ),
            "ViT-B-32": measure(folder, "vit", weights, given.vit_images, given.vit_rows, given.rounds),
        }
    rows, result = [], {}
    for model, figures in found.items():
        times = ratios(figures["again"], figures["labelled"])
        rows.append(
            [
                model,
                spread(figures["labelled"]).text(),
                spread(figures["again"]).text(),
                times.text(),
                figures["bottleneck"],
            ]
        )
        result[model] = {"labelled": spread(figures["labelled"]), "again": spread(figures["again"]), "times": times}
    header = ["", "run, images/s", "rescore, rows/s", "times", "rescoring bound by"]
    body = (
        f"{given.images} and {given.vit_images} photographs labelled with 10 labels, {given.rows} and {given.vit_rows} "
        f"rows rescored with 27, {given.rounds} rounds: median (lowest-highest).\n\n{table(header, rows)}"
    )
    finish("Scoring saved embeddings with new labels", body, EXPECTED, {"machine": on, **result}, given.report)


if __name__ == "__main__":
    main()
