"""How long evaluation takes over many rows, how exact its figures are, and whether its intervals hold.

    python benchmarks/evaluation.py speed [--rows N] [--labels L] [--report PATH]
    python benchmarks/evaluation.py queue --cifar CIFAR_DIR [--seeds N] [--report PATH]
    python benchmarks/evaluation.py cifar --cifar CIFAR_DIR [--report PATH]

speed: `clipbatch evaluate` over a run of made-up scores (N rows, L labels, layout list, a part for every 50,000 rows),
in a process of its own on the cores that there are; its seconds and its peak memory.
queue: a review queue of 400 rows, 40 of each label, is drawn from a run over CIFAR-10's test split and answered by its
truth, N times with other seeds: how often the interval that evaluate states holds the true accuracy.
cifar: the same run evaluated, three label files ranked, thresholds for precision 0.95, and a shuffled truth.

Expected: 1 million rows of 100 labels within 60 s and 2 GiB, of 1,000 labels within 4 minutes; average precision within
0.001 of its definition on 10,000 rows; the interval holds in 93 to 97% of 1,000 queues; 82.9% on CIFAR-10.
"""

from __future__ import annotations

import csv
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import confusion_matrix

import harness
from accuracy import reference
from clipbatch.config import LabelSettings, from_flat, models
from clipbatch.config.labels import load
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.part_file import PartFile
from clipbatch.rundir.row_group import RowGroup
from clipbatch.runs import plan as planner
from clipbatch.tools.evaluate.scores import GroupScores
from clipbatch.tools.evaluate.statistics import BINS, average_precision, bins, stratified
from clipbatch.tools.evaluate.tally import Tally
from clipbatch.tools.evaluate.truth import Truth
from clipbatch.tools.review import Draws, draw
from clipbatch.types import Decoded, ItemBatch, ScoredBatch
from fixtures import MADE_UP_FACTS
from harness import Benchmark
from processes import clipbatch_command, run_clipbatch, run_command, scratch_folder

SHARD = 50_000
TEMPLATE = "a photo of a {}"
SHAPES = ((1_000_000, 100), (1_000_000, 1_000))
EXACT_ROWS, EXACT_LABELS = 10_000, 20


def made_up(folder: Path, rows: int, labels: int) -> Path:
    """A finished run of `rows` rows with random softmax scores, whose input carries the truth: right for about 70%."""
    names = [f"label {number}" for number in range(labels)]
    (folder / "labels.txt").write_text("\n".join(names))
    rng = np.random.default_rng(0)
    truth = rng.integers(0, labels, rows)
    table = pa.table({"uri": [f"{n}.jpg" for n in range(rows)], "kind": pa.array(names).take(pa.array(truth))})
    pq.write_table(table, folder / "input.parquet")
    given = {"inputs": (str(folder / "input.parquet"),), "labels": str(folder / "labels.txt"), "shard_size": SHARD}
    settings = from_flat({**given, "model": models.DEMO, "batch_size": 1000, "device": "cpu"})
    frozen, run = planner.plan(settings, folder / "run"), RunDir(folder / "run")
    fingerprint = run.freeze_model(MADE_UP_FACTS)
    run.make_parts()
    output = frozen.run_settings().output
    for shard in range(frozen.shards):
        here = frozen.shard_rows(shard)
        logits_BL = rng.normal(size=(len(here), labels)).astype(np.float32)
        logits_BL[np.arange(len(here)), truth[here.start : here.stop]] += np.float32(2.0 + np.log(labels) / 2)
        scores_BL = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
        scores_BL /= scores_BL.sum(axis=1, keepdims=True)
        group = RowGroup(frozen.labels, output, capacity=len(here), embedding=8)
        own = table.slice(here.start, len(here)).add_column(0, "row_id", pa.array(np.arange(here.start, here.stop)))
        source = ItemBatch(shard=shard, start=here.start, items=(), rows=own, last=True)
        outcome = Decoded(width=8, height=8, decoder="pil")
        group.add(ScoredBatch(source=source, outcomes=(outcome,) * len(here), scores_BL=scores_BL, image_BD=None))
        rows_table = group.take()
        footer = {"clipbatch.fingerprint": fingerprint, "clipbatch.shard": str(shard), "clipbatch.score": "softmax"}
        with PartFile(run.part(shard, frozen.shards), rows_table.schema.with_metadata(footer), "zstd") as file:
            file.write(rows_table)
            file.close({"clipbatch.counts": json.dumps({"ok": len(here)})})
    return folder / "run"


def speed(args: Any) -> tuple[str, dict[str, Any]]:
    """Seconds and peak memory of `clipbatch evaluate`."""
    shapes = ((args.rows, args.labels),) if args.rows else SHAPES
    result, lines = [], []
    for rows, labels in shapes:
        with scratch_folder() as scratch:
            with ProcessPoolExecutor(1) as aside:  # a child's peak memory begins with its parent's
                run = aside.submit(made_up, scratch, rows, labels).result()
            took = run_command(clipbatch_command("evaluate", run, "--truth", "kind", "--no-page", "--json"))
            found = json.loads(took.output)
        figures = {"seconds": took.wall_s, "cpu_s": took.cpu_s, "peak_mib": took.peak_mib}
        result.append({"rows": rows, "labels": labels, **figures, "accuracy": found["accuracy"]["value"]})
        lines.append([f"{rows:,}", f"{labels:,}", f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}", f"{took.peak_mib:.0f}"])
    worst = exactness()
    body = harness.table(["rows", "labels", "s", "CPU s", "peak MiB"], lines)
    body += (
        f"\n\nAverage precision of {EXACT_LABELS} labels over {EXACT_ROWS:,} rows differs from its definition, "
        f"computed score by score, by {worst:.6f} at most."
    )
    return body, {"runs": result, "average_precision_off": worst}


def exactness() -> float:
    """By how much average precision from bins differs from that of the scores themselves."""
    rng, worst = np.random.default_rng(1), 0.0
    for label in range(EXACT_LABELS):
        truth = rng.random(EXACT_ROWS) < 0.02 + 0.02 * label
        odds = rng.normal(truth * 2.5 - 3, 0.5 + label / 2)
        scores = (1 / (1 + np.exp(-odds))).astype(np.float32)
        at = bins(scores, "softmax")
        counts = [np.bincount(some, minlength=BINS).astype(np.int64) for some in (at[truth], at)]
        worst = max(worst, abs((average_precision(*counts) or 0.0) - definition(truth, scores)))
    return worst


def definition(truth: Any, scores: Any) -> float:
    """Average precision: over the different scores from the highest down, the gain in recall times the precision."""
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    right = truth[order].cumsum()[last_of_score]
    precision, recall = right / (last_of_score + 1), right / truth.sum()
    return float((np.diff(np.append(0.0, recall)) * precision).sum())


def cifar_run(pictures: Path, scratch: Path) -> tuple[Path, list[str]]:
    """A run over CIFAR-10's test split whose input carries the truth as `category`, and that truth by row."""
    files = sorted(pictures.glob("*/*.jpg"))
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    truth = [file.parent.name for file in files]
    with open(scratch / "input.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "category"], *zip(map(str, files), truth, strict=True)])
    options = ("--model", models.DEMO, "--labels", "cifar10", "--template", TEMPLATE, "--embeddings")
    run_clipbatch("run", scratch / "input.csv", *options, "--precision", "fp32", "--out", scratch / "run", "--quiet")
    return scratch / "run", truth


def queue(args: Any) -> tuple[str, dict[str, Any]]:
    """How often the interval of an answered queue holds the accuracy of all rows."""
    with scratch_folder() as scratch:
        path, truth = cifar_run(args.cifar.resolve() / "test", scratch)
        run = RunDir(path)
        plan = run.plan()
        scores = GroupScores(run, plan, 0)
        labels = scores.group.names
        everything = np.concatenate([batch.label_B for batch in scores.batches(all_scores=False)])
        codes = np.array([labels.index(name) for name in truth], np.int32)
        true = float((everything == codes).mean())
        held, widths, lengths = 0, [], set()
        for seed in range(args.seeds):
            rows = draw(run, plan, 0, Draws(per_label=40, seed=seed))
            weights = {row.row_id: (row.stratum, row.weight) for row in rows}
            answers = np.full(plan.rows, -1, np.int32)
            answers[list(weights)] = codes[list(weights)]
            answered = Truth(source="the truth", names=labels, codes=answers, weights=weights)
            tally = Tally(answered, labels, scores.kind, several=False, has_all=False, in_halves=False)
            for batch in scores.batches(all_scores=False):
                tally.add(batch)
            _, low, high = stratified(tally.strata()[0])
            held += low <= true <= high
            widths.append(high - low)
            lengths.add(len(rows))
    share = held / args.seeds
    body = (
        f"{args.seeds} queues of {', '.join(map(str, sorted(lengths)))} rows, 40 of each label, answered by the truth. "
        f"The accuracy of all {len(truth):,} rows is {true:.4f}. The 95% interval holds it in {held} queues, "
        f"{share:.1%}; it is {np.mean(widths):.3f} wide in the mean."
    )
    return body, {"seeds": args.seeds, "held": held, "share": share, "accuracy": true, "width": float(np.mean(widths))}


def confusion_off(run: Path, truth: list[str]) -> int:
    """By how many pictures the confusion matrix of `run` differs from scikit-learn's of open_clip's own labels, sum
    over all cells. Evaluates the run."""
    run_clipbatch("evaluate", run, "--no-page", "--json", "--truth", "category")
    found = pq.read_table(run / "confusion.parquet").to_pylist()
    ours = {(row["truth"], row["label"]): round(row["images"]) for row in found}
    names = sorted(set(truth))
    paths = [Path(uri) for uri in pq.read_table(run / "parts", columns=["uri"])["uri"].to_pylist()]
    theirs = confusion_matrix(truth, reference(paths)[0], labels=names)
    return sum(abs(ours.get((t, p), 0) - int(theirs[i, j])) for i, t in enumerate(names) for j, p in enumerate(names))


def cifar(args: Any) -> tuple[str, dict[str, Any]]:
    """CIFAR-10: accuracy, confusion, ranking, thresholds, a shuffled truth."""
    with scratch_folder() as scratch:
        run, truth = cifar_run(args.cifar.resolve() / "test", scratch)
        off = confusion_off(run, truth)
        files = [scratch / f"{name}.toml" for name in ("plain", "blurry", "pets")]
        names = load(LabelSettings(labels="cifar10")).names
        files[0].write_text(f"labels = {json.dumps(names)}\n")
        files[1].write_text(f'labels = {json.dumps(names)}\ntemplates = ["{{}}", "a blurry photo of a {{}}"]\n')
        other = {"cat": "kitten", "dog": "puppy", "ship": "boat"}
        files[2].write_text("[labels]\n" + "".join(f'{n} = "a photo of a {other.get(n, n)}"\n' for n in names))
        common = ("evaluate", run, "--no-page", "--json", "--truth")
        ranked = json.loads(run_clipbatch(*common, "category", "--labels", *files).output)
        chosen = json.loads(
            run_clipbatch(*common, "category", "--thresholds", scratch / "t.toml", "--precision", "0.95").output
        )["thresholds"]
        shuffled = np.random.default_rng(1).permutation(truth)
        pq.write_table(pa.table({"row_id": np.arange(len(truth)), "truth": shuffled}), scratch / "s.parquet")
        warned = json.loads(run_clipbatch(*common, scratch / "s.parquet").output)["warnings"]
    holds = [e["label"] for e in chosen["labels"] if e["threshold"] and e["tried_on"]["precision_high"] >= 0.95]
    lines = [
        [Path(e["labels"]).stem, f"{e['accuracy']['value']:.2%}", f"{e['accuracy']['low']:.2%}", f"{e['seconds']:.2f}"]
        for e in ranked["ranking"]
    ]
    body = (
        f"Accuracy {ranked['accuracy']['value']:.2%} of {ranked['images']:,} pictures. The cells of the confusion "
        f"matrix differ by {off} pictures in all from scikit-learn's matrix of open_clip's own labels.\n\n"
    )
    body += harness.table(["label file", "accuracy", "at least (95%)", "scored in s"], lines)
    body += (
        f"\n\nThresholds for precision 0.95, chosen on one half: on the other the 95% interval reaches 0.95 for "
        f"{len(holds)} of {len(chosen['labels'])} labels.\n\nA shuffled truth: {warned[0] if warned else 'not noticed'}"
    )
    figures = {
        "accuracy": ranked["accuracy"],
        "confusion_off": off,
        "ranking": ranked["ranking"],
        "labels_that_hold": holds,
    }
    return body, {**figures, "shuffled": warned}


BENCHMARKS = {
    "speed": Benchmark(
        title="Evaluation speed",
        expected="1 million rows of 100 labels within 60 s and 2 GiB, of 1,000 labels within 4 minutes; average "
        "precision within 0.001 of its definition.",
        measure=speed,
        options={"rows": (0, "rows of a run of one shape (0: those above)"), "labels": (100, "its labels")},
    ),
    "queue": Benchmark(
        title="Intervals of answered review queues",
        expected="the interval holds the true accuracy in 93 to 97% of 1,000 queues.",
        measure=queue,
        options={"cifar": (Path("cifar10"), "the folder that scripts/cifar10.py fills"), "seeds": (1000, "queues")},
    ),
    "cifar": Benchmark(
        title="Evaluation on CIFAR-10",
        expected="82.9% right, with scikit-learn's confusion matrix of open_clip's labels; each label file scored "
        "within 2 s; thresholds for precision 0.95 hold for at least 8 of 10 labels; a shuffled truth is called out.",
        measure=cifar,
        options={"cifar": (Path("cifar10"), "the folder that scripts/cifar10.py fills")},
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
