"""Compare a run's labels with the truth, and leave `evaluation.json` and `confusion.parquet` in its run directory.

Reads the parts once, batch by batch, and no image. What needs the scores of all labels is computed from the saved
embeddings if the run has kept the best ones alone; without these it is left out, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import publish, write_json
from clipbatch.tools.evaluate import figures, ranking, thresholds
from clipbatch.tools.evaluate import truth as truths
from clipbatch.tools.evaluate.scores import GroupScores
from clipbatch.tools.evaluate.tally import Tally
from clipbatch.tools.evaluate.truth import Truth
from clipbatch.types import counts_text

EVALUATION, CONFUSION = "evaluation.json", "confusion.parquet"
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be evaluated, and how."""

    # A column of the run's input, or a file.
    truth: str
    # A file with a label for each name in the truth.
    mapping: str | None = None
    # Which label group; None for the only one.
    group: str | None = None
    # Label files to rank on the saved embeddings.
    labels: Sequence[str] = ()
    # A label file to write, with a threshold for each label.
    thresholds: str | None = None
    # What the thresholds are to reach; None: the best F1.
    precision: float | None = None

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision < 1:
            raise InputError(f"--precision {self.precision} is out of range: use a share below 1, such as 0.95")
        if self.precision is not None and not self.thresholds:
            raise InputError("--precision says what --thresholds are to reach: add --thresholds OUT.toml")
        if self.thresholds and not self.thresholds.lower().endswith(".toml"):
            raise InputError(f"--thresholds {self.thresholds}: name a .toml file, which becomes a label file")


def evaluate(path: str, request: Request) -> JsonObject:
    """Compare the run in `path` with the truth; returns what `evaluation.json` holds.

    Raises: InputError where the truth, a label file or the run does not fit, naming the remedy; then it writes nothing.
    """
    run = RunDir(path)
    plan = run.plan()
    number = ranking.group_number(plan.labels, request.group, str(run.path))
    scores = GroupScores(run, plan, number)
    several = scores.group.multiple
    truth = truths.load(run, plan, request.truth, several=several, mapping=request.mapping)
    if request.thresholds:
        _check_thresholds(request, scores, truth)
    ranked = ranking.rank(run, plan, request.labels, truth, request.group) if request.labels else None
    tally = Tally(
        truth,
        scores.group.names,
        scores.kind,
        several=several,
        has_all=scores.has_all,
        in_halves=bool(request.thresholds),
    )
    for batch in scores.batches():
        tally.add(batch)
    result = _result(run, plan, scores, truth, tally)
    if not several:
        figures.add_examples(result, run, plan, scores, truth)
    if ranked:
        result["ranking"] = ranked
    if request.thresholds:
        choices = thresholds.choose(tally, scores.group, scores.kind, request.precision)
        result["thresholds"] = thresholds.summary(choices, request.precision) | {"file": request.thresholds}
        note = (
            f"Thresholds by clipbatch evaluate {run.path}, by {result['thresholds']['by']}: chosen on one half of the "
            f"images, tried on the other.\nScored images with a truth: {tally.images}."
        )
        thresholds.write(Path(request.thresholds), plan.labels, number, choices, note)
    _write(run, result, figures.confusion_table(tally, scores.group, several=several))
    return result


def _check_thresholds(request: Request, scores: GroupScores, truth: Truth) -> None:
    if truth.weights is not None:
        raise InputError("--thresholds needs a truth for a uniform sample, and a review queue is none: use other truth")
    if scores.group.multiple and not scores.has_all:
        raise InputError(
            "--thresholds needs the scores of all labels, and the run has kept the best ones alone: rescore it with "
            "--layout list, or label again with --embeddings"
        )
    folder = Path(request.thresholds or "").absolute().parent
    if not folder.is_dir():
        raise InputError(f"--thresholds {request.thresholds}: there is no folder {folder}")


def _result(run: RunDir, plan: Plan, scores: GroupScores, truth: Truth, tally: Tally) -> JsonObject:
    result: JsonObject = {
        "fingerprint": run.fingerprint(),
        "group": scores.group.name,
        "labels": scores.group.names,
        "multiple": scores.group.multiple,
        "score": scores.kind,
        "truth": {
            "source": truth.source,
            "rows": plan.rows,
            "with_truth": truth.rows,
            "without_truth": tally.without_truth,
            "bad_images": dict(sorted(tally.bad.items())),
            "not_in_run": truth.not_in_run,
            "not_a_label": dict(tally.unknown.most_common()),
        },
        "images": tally.images,
        "left_out": {},
    }
    if not tally.images:
        raise InputError(
            "no scored image has a truth that is a label: the truth has "
            f"{', '.join(map(repr, list(tally.unknown)[:_SHOWN])) or 'nothing'}, the labels are "
            f"{', '.join(map(repr, scores.group.names[:_SHOWN]))}; --mapping gives other names to labels"
        )
    result |= figures.overall(tally, scores)
    result["per_label"] = figures.per_label(tally, scores.group.names)
    if truth.weights is not None:
        result["estimate"] = figures.estimate(tally, plan, run)
        result["left_out"] |= dict.fromkeys(
            ("top_5", "average_precision", "reliability", "coverage"), "a review queue is no uniform sample"
        )
        for name in ("top_5", "mean_average_precision", "reliability", "coverage"):
            result.pop(name, None)
        for entry in result["per_label"]:
            entry["average_precision"] = None
    elif not scores.has_all:
        why = f"the run has kept the {scores.kept} best labels alone, and no embeddings"
        result["left_out"]["average_precision"] = why
        if not scores.group.multiple and "top_5" not in result:
            result["left_out"]["top_5"] = why
    result["scores_from"] = "embeddings" if scores.from_embeddings else "parts"
    if not scores.group.multiple:
        result["confusions"] = figures.confusions(tally, scores.group.names)
    result["warnings"] = figures.warnings(tally, truth, scores, result)
    return result


def _write(run: RunDir, result: JsonObject, confusion: pa.Table) -> None:
    with publish(run.path / CONFUSION) as file:
        pq.write_table(confusion, file)
    write_json(run.path / EVALUATION, result)


def text(result: JsonObject) -> str:
    """The evaluation in a few lines, for a terminal."""
    truth = result["truth"]
    lines = [f"warning: {warning}" for warning in result["warnings"]]
    lines.append(f"{result['images']} images compared with {truth['source']}")
    if truth["bad_images"]:
        lines.append(f"not compared: {sum(truth['bad_images'].values())} bad images ({_counted(truth['bad_images'])})")
    if truth["not_a_label"]:
        lines.append(f"truth that is no label: {_counted(truth['not_a_label'])}")
    if truth["not_in_run"]:
        lines.append(f"rows of the truth that the run does not have: {truth['not_in_run']}")
    if "estimate" in result:
        entry = result["estimate"]
        lines.append(f"accuracy of {entry['of']}: {_share(entry)}")
        lines += [f"note: {note}" for note in entry["notes"]]
    for name, title in (("accuracy", "accuracy"), ("top_5", "top 5"), ("exact_match", "all labels right")):
        if name in result and "estimate" not in result:
            lines.append(f"{title}: {_share(result[name])}")
    for name, title in (
        ("mean_recall", "mean recall of a label"),
        ("macro_f1", "mean F1 of a label"),
        ("mean_average_precision", "mean average precision of a label"),
    ):
        if result.get(name) is not None:
            lines.append(f"{title}: {result[name]:.4f}")
    if (error := (result.get("reliability") or {}).get("expected_calibration_error")) is not None:
        lines.append(f"expected calibration error: {error:.4f}")
    lines += [f"left out: {name}, since {why}" for name, why in result["left_out"].items()]
    for entry in result.get("confusions", [])[:3]:
        images = "1 image" if entry["images"] == 1 else f"{entry['images']:g} images"
        lines.append(f"{entry['truth']} taken for {entry['label']}: {images}")
    for entry in result.get("ranking", []):
        lines.append(f"{entry['labels']}: {_share(entry['accuracy'])}, scored in {entry['seconds']:.2f} s")
    if chosen := result.get("thresholds"):
        lines.append(
            f"thresholds by {chosen['by']}, chosen on one half and tried on the other: precision "
            f"{_share(chosen['precision'])}; written to {chosen['file']}"
        )
        if chosen["without"]:
            lines.append(f"labels without a threshold: {', '.join(chosen['without'])}")
    return "\n".join(lines)


def _share(entry: JsonObject) -> str:
    if entry["value"] is None:
        return "no image"
    return f"{100 * entry['value']:.2f}% (95% interval {100 * entry['low']:.2f} to {100 * entry['high']:.2f}%)"


def _counted(counts: dict[str, int]) -> str:
    if "ok" in counts:
        return counts_text(counts)
    named = [f"{count} {name}" for name, count in list(counts.items())[:_SHOWN]]
    return ", ".join(named) + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")
