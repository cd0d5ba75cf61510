"""Whether a head that fit-head has fitted is as good as scikit-learn on open_clip's own embeddings.

    python benchmarks/heads.py --cifar CIFAR_DIR [--report PATH]

Takes 10,000 training pictures of CIFAR-10, a thousand of each class (CIFAR_DIR/train/<class>/*.jpg, made by
scripts/cifar10.py), labels them with the embedded model and `--embeddings` (kept as float16), and has `fit-head` fit a
probe to 8,000 of them. Then `clipbatch run --head` classifies the 10,000 test pictures. The reference is
scikit-learn's LogisticRegression with the same C, on open_clip's float32 embeddings of the same 8,000 pictures, with
open_clip's own transform, asked for open_clip's embeddings of the test pictures. Both runs of clipbatch are in fp32.

Expected: accuracies over the test pictures within 0.2 points of each other.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression

import accuracy
import harness
from clipbatch.config import models
from clipbatch.tools.heads.fit import divided
from harness import Benchmark
from processes import run_clipbatch, scratch_folder

OF_EACH_CLASS = 1000
HELD_OUT = 0.2
OPTIONS = ("--model", models.DEMO, "--precision", "fp32", "--device", "cpu", "--quiet")


def some(pictures: Path, of_each: int) -> list[Path]:
    """The first pictures of each class, in an order drawn at random."""
    if not pictures.is_dir():
        raise SystemExit(f"{pictures} does not exist: make it with python scripts/cifar10.py {pictures.parent}")
    files = [file for folder in sorted(pictures.iterdir()) for file in sorted(folder.glob("*.jpg"))[:of_each]]
    return [files[at] for at in np.random.default_rng(0).permutation(len(files))]


def write_input(path: Path, files: list[Path]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["path", "category"], *((str(each), each.parent.name) for each in files)])


def heads(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Accuracy over the test pictures: of the fitted head, and of scikit-learn on open_clip's embeddings."""
    train, test = (some(args.cifar.resolve() / name, args.of_each) for name in ("train", "test"))
    with scratch_folder() as scratch:
        write_input(scratch / "train.csv", train)
        write_input(scratch / "test.csv", test)
        run_clipbatch(
            "run", scratch / "train.csv", "--labels", "cifar10", *OPTIONS, "--embeddings", "--out", scratch / "a"
        )
        head = scratch / "head.safetensors"
        fit = ("--truth", "category", "--held-out", HELD_OUT, "--seed", 0, "--out", head, "--json")
        took = run_clipbatch("fit-head", scratch / "a", *fit)
        fitted = json.loads(took.output)
        given = ("--labels", "cifar10", "--head", f"head={head}", *OPTIONS)
        run_clipbatch("run", scratch / "test.csv", *given, "--out", scratch / "b")
        parts = sorted((scratch / "b").glob("parts/part-*.parquet"))
        table = pa.concat_tables([pq.read_table(part, columns=["label", "head_label", "category"]) for part in parts])
    truth, zero_shot, ours = (np.array(table[name].to_pylist()) for name in ("category", "label", "head_label"))
    _, train_BD = accuracy.reference(train)
    _, test_BD = accuracy.reference(test)
    kinds = np.array([file.parent.name for file in train])
    codes = np.unique(kinds, return_inverse=True)[1].astype(np.int32)
    rows, _ = divided(codes, HELD_OUT, np.random.default_rng(0))
    theirs = LogisticRegression(C=fitted["c"], max_iter=2000).fit(train_BD[rows], kinds[rows]).predict(test_BD)
    figures = {
        "fit_head": float((ours == truth).mean()),
        "scikit_learn_on_open_clip": float((theirs == truth).mean()),
        "same_answer": float((ours == theirs).mean()),
        "zero_shot": float((zero_shot == truth).mean()),
        "held_out": fitted["accuracy"]["value"],
        "c": fitted["c"],
        "fitted_on": fitted["fitted_on"],
        "fit_s": took.wall_s,
    }
    lines = [
        ["fit-head on saved embeddings, run --head", f"{figures['fit_head']:.2%}"],
        ["scikit-learn on open_clip's embeddings", f"{figures['scikit_learn_on_open_clip']:.2%}"],
        ["the best label of the prompts", f"{figures['zero_shot']:.2%}"],
    ]
    body = f"{len(truth):,} pictures of CIFAR-10's test split, {models.DEMO}, fp32. "
    body += f"Fitted on {fitted['fitted_on']:,} pictures of its training split, C = {fitted['c']:g}, in "
    body += f"{took.wall_s:.0f} s.\n\n{harness.table(['', 'accuracy'], lines)}\n\n"
    body += f"The two probes agree on {figures['same_answer']:.2%} of the pictures. On the {fitted['held_out']:,} "
    body += f"pictures that it held out, fit-head stated {fitted['accuracy']['value']:.2%}.\n"
    body += "The embedded model was trained on the training split, so pictures of it are easier than those of the test "
    body += "split."
    return body, figures


BENCHMARK = Benchmark(
    title="A fitted head on CIFAR-10",
    expected="accuracies of fit-head and of scikit-learn on open_clip's embeddings within 0.2 points of each other.",
    measure=heads,
    options={
        "cifar": (Path("cifar10"), "the folder that scripts/cifar10.py fills"),
        "of_each": (OF_EACH_CLASS, "pictures of each class"),
    },
)

if __name__ == "__main__":
    harness.run(__doc__ or "", {"heads": BENCHMARK})
