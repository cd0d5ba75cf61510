"""The figures of an evaluation, from counts: intervals, precision and recall, average precision, calibration.

Scores are counted in bins: `BINS` of equal width in the log-odds of a probability, so that those near 0 and near 1 are
told apart as well as those in the middle, or in a cosine from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipbatch.config.nesting import JsonObject
from clipbatch.config.sampling import wilson

BINS = 8192
# The largest that a float32 below 1 has is 16.6.
_LOG_ODDS = 17.0
Counts = NDArray[np.int64]


def bins(scores: NDArray[np.float32], kind: str) -> NDArray[np.int32]:
    """The bin of each score. kind: softmax, sigmoid or cosine."""
    if kind == "cosine":
        at = (scores + np.float32(1)) * np.float32(BINS / 2)
    else:
        with np.errstate(divide="ignore"):
            at = np.log(scores)
            at -= np.log(np.float32(1) - scores)
        at += np.float32(_LOG_ODDS)
        at *= np.float32(BINS / (2 * _LOG_ODDS))
    np.nan_to_num(at, copy=False, nan=0, posinf=BINS - 1, neginf=0)
    return np.asarray(np.clip(at, 0, BINS - 1, out=at).astype(np.int32))


def edge(number: int, kind: str) -> float:
    """The lowest score in bin `number`."""
    if kind == "cosine":
        return 2 * number / BINS - 1
    if number <= 0:
        return 0.0
    return 1 / (1 + math.exp(_LOG_ODDS - 2 * _LOG_ODDS * number / BINS))


def share(right: float, count: float) -> dict[str, float | None]:
    """A share with its interval, for JSON."""
    low, high = wilson(right, count)
    return {"value": right / count if count else None, "low": low, "high": high, "right": right, "images": count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """A part of the population of which some are drawn at random, and answered."""

    # Images in it.
    size: float
    drawn: int
    right: int


def stratified(strata: Sequence[Stratum]) -> tuple[float, float, float]:
    """The share of the whole population that is right, with its 95% interval.

    Each stratum counts by its size. The interval is Wilson's, for as many simple random draws as would have the same
    variance; a stratum that is drawn completely adds none.
    """
    total = sum(stratum.size for stratum in strata)
    value, variance = 0.0, 0.0
    for stratum in strata:
        part = stratum.right / stratum.drawn
        value += stratum.size / total * part
        if stratum.drawn < stratum.size:
            # (right + 1) / (drawn + 2), or a stratum of few draws that are all right would count as known
            guarded = (stratum.right + 1) / (stratum.drawn + 2)
            rest = 1 - stratum.drawn / stratum.size
            spread = max(part * (1 - part) * stratum.drawn / max(stratum.drawn - 1, 1), 0.0)
            if spread == 0:
                spread = guarded * (1 - guarded) / (stratum.drawn + 2) * stratum.drawn / (stratum.drawn + 1)
            variance += (stratum.size / total) ** 2 * spread / stratum.drawn * rest
    drawn = sum(stratum.drawn for stratum in strata)
    if all(stratum.drawn >= stratum.size for stratum in strata):
        return value, value, value
    spread = max(value * (1 - value), 0.25 / max(drawn, 1))
    effective = spread / variance if variance > 0 else float(drawn)
    low, high = wilson(value * effective, effective)
    return value, low, high


def average_precision(positive_N: Counts, all_N: Counts) -> float | None:
    """As scikit-learn defines it: the sum over thresholds of precision times the gain in recall. None: no positive.

    positive_N, all_N: images by bin; those of one bin count as of one score.
    """
    total = int(positive_N.sum())
    if not total:
        return None
    right, taken = positive_N[::-1].cumsum(), all_N[::-1].cumsum()
    precision = right / np.maximum(taken, 1)
    return float((positive_N[::-1] * precision).sum() / total)


def rates(right: float, predicted: float, support: float) -> dict[str, float | None]:
    """Precision, recall and F1; None where nothing is predicted, or nothing is to be found."""
    precision = right / predicted if predicted else None
    recall = right / support if support else None
    f1 = 2 * right / (predicted + support) if predicted + support else None
    return {"precision": precision, "recall": recall, "f1": f1}


def calibration(count_N: Counts, right_N: Counts, sum_N: NDArray[np.float64]) -> JsonObject:
    """Expected calibration error, with what it is made of. count_N, right_N, sum_N: images, right ones and their summed
    scores in bins of equal width from 0 to 1."""
    total, width = int(count_N.sum()), 1 / len(count_N)
    entries, error = [], 0.0
    for number in np.flatnonzero(count_N):
        images = int(count_N[number])
        accuracy, mean = float(right_N[number]) / images, float(sum_N[number]) / images
        error += images / total * abs(accuracy - mean)
        low, high = round(number * width, 4), round((number + 1) * width, 4)
        entries.append({"low": low, "high": high, "images": images, "mean_score": mean, "accuracy": accuracy})
    return {"expected_calibration_error": error if total else None, "bins": entries}


def coverage(right_N: Counts, all_N: Counts, kind: str, points: int = 50) -> list[dict[str, float]]:
    """Precision against the share of images that keep their label, as the threshold rises.

    right_N, all_N: right images and all, by bin of the best score.
    """
    total = int(all_N.sum())
    if not total:
        return []
    kept, right = all_N[::-1].cumsum()[::-1], right_N[::-1].cumsum()[::-1]
    used = np.flatnonzero(all_N)
    wanted = np.linspace(1, 0, points, endpoint=False) * total
    chosen = np.unique(np.clip(np.searchsorted(-kept[used], -wanted, side="right") - 1, 0, None))
    return [
        {
            "threshold": edge(int(number), kind),
            "coverage": float(kept[number]) / total,
            "precision": float(right[number]) / float(kept[number]),
        }
        for number in used[chosen]
    ]
