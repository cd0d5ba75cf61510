"""What was counted -> the entries of `evaluation.json`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from clipbatch.config.label_set import LabelGroup
from clipbatch.config.nesting import JsonObject
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.tools.evaluate.scores import GroupScores, part_batches
from clipbatch.tools.evaluate.statistics import average_precision, calibration, coverage, rates, share, stratified
from clipbatch.tools.evaluate.tally import Tally
from clipbatch.tools.evaluate.truth import NO_TRUTH, Truth

# Pairs of truth and label that are named.
CONFUSIONS = 10
# Images that are shown of each.
EXAMPLES = 6
NO_LABEL_NAME = "(no label)"
# By how much the mean score exceeds the accuracy of a model that is sure of itself and wrong.
_SURE = 0.2
# From how many images on something is said of the truth as a whole.
_MIN_IMAGES = 30
_NAMED = 5


def overall(tally: Tally, scores: GroupScores) -> JsonObject:
    """Figures of all images together."""
    recalls = tally.found[tally.support > 0] / tally.support[tally.support > 0]
    precisions = [_average_precision(tally, number) for number in range(tally.size)]
    known = [value for value in precisions if value is not None]
    mean_precision = float(np.mean(known)) if known else None
    if scores.group.multiple:
        right, predicted, support = (float(a.sum()) for a in (tally.found, tally.predicted, tally.support))
        each = [rates(*a)["f1"] for a in zip(tally.found, tally.predicted, tally.support, strict=True)]
        f1s = [value for value in each if value is not None]
        return {
            "exact_match": share(tally.exact, tally.images),
            "micro": rates(right, predicted, support),
            "macro_f1": float(np.mean(f1s)) if f1s else None,
            "mean_average_precision": mean_precision,
        }
    found: JsonObject = {
        "accuracy": share(tally.right, tally.images),
        "mean_recall": float(recalls.mean()) if len(recalls) else None,
        "mean_average_precision": mean_precision,
        "mean_score": tally.score_sum / tally.images,
        "coverage": coverage(
            tally.right_scores.sum(axis=(0, 1), dtype=np.int64),
            tally.best_scores.sum(axis=(0, 1), dtype=np.int64),
            scores.kind,
        ),
    }
    if tally.in_top_5 == tally.images:
        found["top_5"] = share(tally.right_top_5, tally.images)
    if scores.kind != "cosine":
        count, right_, total = tally.calibration
        found["reliability"] = calibration(count.astype(np.int64), right_.astype(np.int64), total)
    return found


def per_label(tally: Tally, names: list[str]) -> list[JsonObject]:
    """Precision, recall, F1, average precision and support of each label, in the order of the labels."""
    return [
        {
            "label": name,
            "support": float(tally.support[number]),
            "predicted": float(tally.predicted[number]),
            "right": float(tally.found[number]),
            **rates(float(tally.found[number]), float(tally.predicted[number]), float(tally.support[number])),
            "average_precision": _average_precision(tally, number),
        }
        for number, name in enumerate(names)
    ]


def _average_precision(tally: Tally, number: int) -> float | None:
    if tally.positive_scores is None or tally.all_scores is None:
        return None
    positive, everything = (
        array[:, number].sum(axis=0, dtype=np.int64) for array in (tally.positive_scores, tally.all_scores)
    )
    return average_precision(positive, everything)


def estimate(tally: Tally, plan: Plan, run: RunDir) -> JsonObject:
    """The accuracy of the whole run, from a review queue."""
    strata, unanswered_strata, unanswered = tally.strata()
    value, low, high = stratified(strata)
    covered = sum(stratum.size for stratum in strata)
    counted = count_statuses(run, plan, run.done(plan))
    scored = sum(counts.get("ok", 0) for counts in counted.values())
    notes = [f"{unanswered} rows of the queue have no answer that is a label, and do not count"] if unanswered else []
    if unanswered_strata:
        notes.append(f"no row is answered of the strata {', '.join(map(repr, unanswered_strata[:_NAMED]))}")
    whole = round(covered) >= scored
    if not whole:
        notes.append(
            f"the queue stands for {round(covered)} of {scored} scored images: for all of them, draw a queue with "
            "--random or --per-label, and answer all of it"
        )
    return {
        "value": value,
        "low": low,
        "high": high,
        "of": "the whole run" if whole else f"{round(covered)} of {scored} scored images",
        "answered": sum(stratum.drawn for stratum in strata),
        "unanswered": unanswered,
        "notes": notes,
    }


def confusions(tally: Tally, names: list[str]) -> list[JsonObject]:
    """The most frequent wrong pairs of truth and label."""
    names = [*names, NO_LABEL_NAME]
    pairs = [(count, *divmod(code, tally.size + 1)) for code, count in tally.confusion.items()]
    wrong = sorted((-count, truth, label) for count, truth, label in pairs if truth != label and count)
    return [
        {
            "truth": names[truth],
            "label": names[label],
            "images": -count,
            "share_of_truth": -count / float(tally.support[truth]),
            "examples": [],
        }
        for count, truth, label in wrong[:CONFUSIONS]
    ]


def confusion_table(tally: Tally, group: LabelGroup, *, several: bool) -> pa.Table:
    """`confusion.parquet`: how many images of each truth have which label.

    several: labels are then counted for themselves: as truth and as label, the label or `not` and the label.
    """
    names = [*group.names, NO_LABEL_NAME]
    if not several:
        entries = [(names[code // (tally.size + 1)], names[code % (tally.size + 1)], n) for code, n in _items(tally)]
    else:
        entries = []
        for number, name in enumerate(group.names):
            right, predicted, support = (float(a[number]) for a in (tally.found, tally.predicted, tally.support))
            neither = tally.images - predicted - support + right
            entries += [(name, name, right), (name, f"not {name}", support - right)]
            entries += [(f"not {name}", name, predicted - right), (f"not {name}", f"not {name}", neither)]
    truths, labels, counts = zip(*entries, strict=True) if entries else ((), (), ())
    return pa.table(
        {
            "truth": pa.array(truths, pa.string()),
            "label": pa.array(labels, pa.string()),
            "images": pa.array(counts, pa.float64()),
        }
    )


def _items(tally: Tally) -> list[tuple[int, float]]:
    return list(tally.confusion.items())


def warnings(tally: Tally, truth: Truth, scores: GroupScores, result: JsonObject) -> list[str]:
    """What is wrong with the truth as a whole, in sentences."""
    said = []
    if tally.unknown:
        named = ", ".join(f"{name!r} ({count})" for name, count in tally.unknown.most_common(_NAMED))
        more = f" and {len(tally.unknown) - _NAMED} more" if len(tally.unknown) > _NAMED else ""
        said.append(
            f"the truth of {sum(tally.unknown.values())} images is no label: {named}{more}; they are left out of all "
            "figures; --mapping gives other names to labels"
        )
    if scores.group.multiple or tally.images < _MIN_IMAGES:
        return said
    used = np.flatnonzero(tally.support)
    if len(used) == 1:
        said.append(
            f"the truth is {scores.group.names[used[0]]!r} for every image: if that is not so, another column holds it"
        )
        return said
    images = float(tally.support.sum())
    accuracy = float(tally.found.sum()) / images
    chance = float((tally.support / images) @ (tally.predicted / images))
    near_chance = accuracy <= chance + 3 * np.sqrt(chance * (1 - chance) / tally.images)
    sure = scores.kind == "cosine" or result["mean_score"] >= accuracy + _SURE
    if near_chance and sure:
        said.append(
            f"the truth looks shuffled: {100 * accuracy:.1f}% of the labels agree with it, as many as by chance "
            f"({100 * chance:.1f}%), while the mean score is {result['mean_score']:.2f}; check that its rows go with "
            "the images"
        )
    return said


def add_examples(result: JsonObject, run: RunDir, plan: Plan, scores: GroupScores, truth: Truth) -> None:
    """Put images into each of the confusions: those with the highest scores, which are the surest mistakes."""
    wanted = {(entry["truth"], entry["label"]): entry for entry in result.get("confusions", [])}
    if not wanted:
        return
    columns = ["row_id", "uri", scores.columns.label, scores.columns.score]
    for batch in part_batches(run, plan, columns, 2**16):
        row_ids = np.asarray(batch.column("row_id"))
        codes_B = truth.codes[row_ids]
        score_B = np.asarray(batch.column(scores.columns.score).fill_null(-np.inf))
        label = batch.column(scores.columns.label)
        names = [*label.dictionary.to_pylist(), NO_LABEL_NAME]
        label_B = np.asarray(label.indices.fill_null(len(names) - 1))
        for (true, given), entry in wanted.items():
            if true not in truth.names or given not in names:
                continue
            here = (codes_B == truth.names.index(true)) & (label_B == names.index(given)) & (codes_B != NO_TRUTH)
            for slot in np.flatnonzero(here & np.isfinite(score_B)):
                entry["examples"].append((float(score_B[slot]), int(row_ids[slot]), batch.column("uri")[slot].as_py()))
            entry["examples"] = sorted(entry["examples"], key=lambda each: (-each[0], each[1]))[:EXAMPLES]
    for entry in wanted.values():
        entry["examples"] = [{"row_id": row, "uri": uri, "score": score} for score, row, uri in entry["examples"]]
