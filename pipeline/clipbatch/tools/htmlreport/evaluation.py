"""The figures in the page's section on an evaluation, from what `clipbatch evaluate` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from clipbatch.rundir.shapes import NOTHING, NUMBER, TEXT, Every, Shape, fits
from clipbatch.tools.htmlreport import figures

_OPTIONAL = (NUMBER, NOTHING)
_EVALUATION: dict[str, Shape] = {
    "images": NUMBER,
    "truth": {"source": TEXT, "bad_images": Every(dict, NUMBER), "not_a_label": Every(dict, NUMBER)},
    "per_label": Every(
        list,
        {
            "label": TEXT,
            "support": NUMBER,
            **dict.fromkeys(("precision", "recall", "f1", "average_precision"), _OPTIONAL),
        },
    ),
    "warnings": Every(list, TEXT),
    "left_out": Every(dict, TEXT),
}


def shows(evaluation: Any) -> bool:
    """Whether the page can show an `evaluation.json`, which anybody may have edited."""
    return fits(evaluation, _EVALUATION)


def reliability(evaluation: Mapping[str, Any]) -> Markup | None:
    """The diagram of accuracy by score; None if there is none."""
    entries = (evaluation.get("reliability") or {}).get("bins", ())
    if not entries:
        return None
    points = [(entry["mean_score"], entry["accuracy"]) for entry in entries]
    return figures.curve(points, xlabel="mean score", ylabel="accuracy", name="reliability", diagonal=True)


def coverage(evaluation: Mapping[str, Any]) -> Markup | None:
    """The diagram of precision by the share of images that keep their label; None if there is none."""
    entries = evaluation.get("coverage") or ()
    if len(entries) < 2:
        return None
    points = [(entry["coverage"], entry["precision"]) for entry in entries]
    return figures.curve(points, xlabel="share of images that keep their label", ylabel="precision", name="coverage")
