"""How near `clipbatch estimate` comes to what the run then takes.

    python benchmarks/estimates.py [PHOTOS] [--rows N] [--rounds N] [--seconds S] [--model NAME] [--report PATH]

Writes a manifest that names the photographs of PHOTOS again and again, N rows in all, and gives the model random
weights, which take as long as trained ones. Each round estimates the run in one process and does it in another, on the
same cores, and compares the seconds that the estimate states with those that the run took, from its start to its end.

Expected: the median of three rounds of 10,000 rows of ViT-B-32 lies within 20% of the run, on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from typing import Any

import open_clip
from safetensors.torch import save_file

import harness
from clipbatch.config import models
from harness import Benchmark
from processes import run_clipbatch, scratch_folder

_SUFFIXES = (".jpg", ".jpeg", ".png")


def estimates(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The seconds that estimates state, beside those of the runs."""
    photos = sorted(path.resolve() for path in args.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    rounds = []
    with scratch_folder() as scratch:
        names = itertools.islice(itertools.cycle(photos), args.rows)
        (scratch / "list.txt").write_text("\n".join(map(str, names)))
        options: list[object] = [scratch / "list.txt", "--labels", "cifar10", "--model", args.model, "--device", "cpu"]
        if args.model != models.DEMO:
            save_file(open_clip.create_model(args.model).state_dict(), scratch / "random.safetensors")
            options += ["--pretrained", scratch / "random.safetensors"]
        for number in range(args.rounds):
            said = json.loads(run_clipbatch("estimate", *options, "--seconds", args.seconds, "--json").output)
            took = run_clipbatch("run", *options, "--out", scratch / f"run-{number}", "--quiet")
            size = sum(path.stat().st_size for path in (scratch / f"run-{number}" / "parts").iterdir())
            rounds.append(
                {
                    "estimated_s": said["hours"] * 3600,
                    "run_s": took.wall_s,
                    "ratio": said["hours"] * 3600 / took.wall_s,
                    "bytes_ratio": said["bytes"] / size if said["bytes"] else None,
                }
            )
    ratio = statistics.median(entry["ratio"] for entry in rounds)
    lines = [
        [str(number), f"{entry['estimated_s']:.1f}", f"{entry['run_s']:.1f}", f"{entry['ratio']:.3f}"]
        for number, entry in enumerate(rounds, 1)
    ]
    body = f"{args.rows:,} rows of {args.model}, {args.seconds:g} s of sample; median ratio {ratio:.3f}.\n\n"
    body += harness.table(["round", "estimated s", "run s", "ratio"], lines)
    return body, {"rows": args.rows, "model": args.model, "median_ratio": ratio, "rounds": rounds}


BENCHMARK = Benchmark(
    title="Estimates beside runs, {model}",
    expected="the median of three rounds of 10,000 rows of ViT-B-32 within 20% of the run, on a quiet machine.",
    measure=estimates,
    options={
        "rows": (10_000, "rows of the run"),
        "rounds": (3, "how often both are done"),
        "seconds": (30.0, "of labelling a sample"),
        "model": ("ViT-B-32", "one of open_clip's names"),
    },
    folder=True,
)

if __name__ == "__main__":
    harness.run(__doc__ or "", {"estimates": BENCHMARK})
