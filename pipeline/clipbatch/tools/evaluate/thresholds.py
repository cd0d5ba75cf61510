"""Choose a threshold for each label on one half of the images, try it on the other, and write a label file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipbatch.config.label_set import LabelGroup, LabelSet
from clipbatch.config.nesting import JsonObject
from clipbatch.config.sampling import wilson
from clipbatch.storage.atomic import publish
from clipbatch.tools.evaluate.statistics import edge, rates, share
from clipbatch.tools.evaluate.tally import Tally

# Halves of the images.
CHOSEN_ON, TRIED_ON = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The threshold of one label."""

    label: str
    # None where no threshold reaches the precision, or the half to choose on has no image of the label.
    threshold: float | None
    why_not: str | None
    chosen_on: JsonObject
    # Precision with its interval, recall, F1, images at or above the threshold, and support.
    tried_on: JsonObject


def choose(tally: Tally, group: LabelGroup, kind: str, precision: float | None) -> list[Choice]:
    """A threshold for each label of `group`.

    precision: the lowest score from which the label is right at least so often; None: the score with the best F1.
    """
    several = group.multiple
    right = tally.positive_scores if several else tally.right_scores
    taken = tally.all_scores if several else tally.best_scores
    assert right is not None
    assert taken is not None
    positives = tally.positive_scores
    choices = []
    for number, label in enumerate(group.names):
        right_2N, taken_2N = (
            array[:, number, ::-1].astype(np.int64).cumsum(axis=1)[:, ::-1] for array in (right, taken)
        )
        # Without the scores of all labels, recall is that of the images whose best label it is.
        support = [
            int((right if positives is None else positives)[half, number].sum(dtype=np.int64))
            for half in (CHOSEN_ON, TRIED_ON)
        ]
        at, why_not = _best(right_2N[CHOSEN_ON], taken_2N[CHOSEN_ON], support[CHOSEN_ON], precision)
        figures = [_figures(right_2N[half], taken_2N[half], support[half], at) for half in (CHOSEN_ON, TRIED_ON)]
        choices.append(
            Choice(
                label=label,
                threshold=None if at is None else round(edge(at, kind), 6),
                why_not=why_not,
                chosen_on=figures[0],
                tried_on=figures[1],
            )
        )
    return choices


def _best(
    right_N: NDArray[np.int64], taken_N: NDArray[np.int64], support: int, precision: float | None
) -> tuple[int | None, str | None]:
    """The bin from which on the label counts, or why there is none. right_N, taken_N: images from each bin on."""
    if not support or not taken_N[0]:
        return None, "the half to choose on has no image of it"
    share_N = right_N / np.maximum(taken_N, 1)
    if precision is None:
        return int(np.argmax(2 * right_N / np.maximum(taken_N + support, 1))), None
    reaching = np.flatnonzero((share_N >= precision) & (taken_N > 0))
    if not len(reaching):
        return None, f"no threshold reaches precision {precision}: the best is {share_N[taken_N > 0].max():.3f}"
    return int(reaching[0]), None


def _figures(right_N: NDArray[np.int64], taken_N: NDArray[np.int64], support: int, at: int | None) -> JsonObject:
    place = 0 if at is None else at
    right, taken = int(right_N[place]), int(taken_N[place])
    low, high = wilson(right, taken)
    figures: JsonObject = {**rates(right, taken, support), "precision_low": low, "precision_high": high}
    return figures | {"images": taken, "right": right, "support": support}


def summary(choices: Sequence[Choice], precision: float | None) -> JsonObject:
    """What was chosen, for `evaluation.json`. The overall figures are those of the half to try on."""
    chosen = [choice for choice in choices if choice.threshold is not None]
    right, taken = (sum(choice.tried_on[name] for choice in chosen) for name in ("right", "images"))
    return {
        "by": "f1" if precision is None else f"precision {precision}",
        "chosen_on": "one half of the images, by a hash of row_id",
        "tried_on": "the other half, which had no part in the choice",
        "labels": [dataclasses.asdict(choice) for choice in choices],
        "without": [choice.label for choice in choices if choice.threshold is None],
        "precision": share(right, taken),
    }


def write(path: Path, labels: LabelSet, number: int, choices: Sequence[Choice], note: str) -> None:
    """Write a label file like the run's with these thresholds for its group `number`. note: put into its first lines.

    Raises: InputError where it cannot be written.
    """
    lines = [f"# {line}" for line in note.splitlines()]
    lines += [f"# no threshold for {_text(c.label)}: {c.why_not}" for c in choices if c.threshold is None]
    for at, group in enumerate(labels.groups):
        own = {c.label: c.threshold for c in choices if c.threshold is not None} if at == number else {}
        lines += _group_lines(group, group.thresholds | own)
    with publish(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _group_lines(group: LabelGroup, thresholds: dict[str, float]) -> list[str]:
    prefix = f"groups.{group.name}." if group.name else ""
    lines = ["", f"[groups.{group.name}]"] if group.name else [""]
    lines.append(f"templates = [{', '.join(map(_text, group.templates))}]")
    lines += ["multiple = true"] if group.multiple else []
    lines += [] if group.threshold is None else [f"threshold = {group.threshold!r}"]
    if group.opposites is None:
        lines += ["", f"[{prefix}labels]"]
        lines += [f"{_text(name)} = [{', '.join(map(_text, phrases))}]" for name, phrases in group.phrases.items()]
    else:
        lines += ["", f"[{prefix}tags]"]
        for name, phrases in group.phrases.items():
            sides = (f"[{', '.join(map(_text, side))}]" for side in (phrases, group.opposites[name]))
            lines.append(f"{_text(name)} = [{', '.join(sides)}]")
    lines += ["", f"[{prefix}thresholds]"] if thresholds else []
    lines += [f"{_text(name)} = {value!r}" for name, value in thresholds.items()]
    return lines


def _text(value: str) -> str:
    """A TOML string: JSON's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
