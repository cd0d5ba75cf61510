"""Whether labels, a model and a kind of score go together.

`check_scoring` refuses when a run is planned, never when it goes on; `chance_remark` looks at scores that exist.
"""

from __future__ import annotations

from clipbatch.config.label_set import LabelGroup, LabelSet
from clipbatch.errors import InputError

# A median score is at chance level up to this share of the way from chance to 1, or up to twice chance.
_NEAR_CHANCE = 0.1
_BIAS_REMEDY = (
    "Leave --score out, or for yes/no answers write tags in a TOML label file, as in tags = "
    '{person = ["a photo of a person", "a photo without people"]}'
)


def check_scoring(labels: LabelSet, score: str, has_bias: bool | None, model: str) -> None:
    """Whether scores of this kind mean something for `labels`.

    score: as the setting says. has_bias: whether the model was trained with a sigmoid loss and so has a logit bias;
    None: unknown until the model is loaded. model: its name, for messages.
    Raises: InputError with the reason and the remedy.
    """
    if score == "sigmoid" and has_bias is False:
        raise InputError(
            f"--score sigmoid needs a model that was trained with a sigmoid loss, such as the SigLIP family. {model} "
            f"was trained with softmax: it has no logit bias, so nearly every score would be 1. {_BIAS_REMEDY}"
        )
    kind = score
    if score == "auto":
        kind = "unknown" if has_bias is None else "sigmoid" if has_bias else "softmax"
    for group in labels.groups:
        what = f"label group {group.name!r}" if group.name else "--labels"
        if group.opposites is not None:
            if kind == "cosine":
                raise InputError(
                    f"{what} has tags, and --score cosine has no yes and no to weigh against each other: leave --score "
                    "out, or use labels with multiple = true"
                )
        elif kind == "softmax" and len(group.phrases) < 2:
            raise InputError(
                f"{what} has 1 label(s): give two or more, since a softmax score compares labels; one alone works as a "
                "tag with a yes and a no, or with --score cosine"
            )
        elif kind == "cosine" and group.multiple and None in _given(group.thresholds, group.threshold, group.names):
            raise InputError(
                f"{what} has multiple = true, and --score cosine has no usual threshold: write threshold = 0.25 or so, "
                "or thresholds for all labels, into the label file"
            )


def chance_remark(group: LabelGroup, kind: str, middle: float | None) -> str | None:
    """What to say if the scores of a group say nothing: the best label's score is about that of every other label.

    kind: softmax, sigmoid or cosine. middle: the median of the best labels' scores.
    """
    count = len(group.phrases)
    if kind != "softmax" or middle is None or count < 2 or group.opposites is not None:
        return None
    chance = 1 / count
    if middle > min(2 * chance, chance + _NEAR_CHANCE * (1 - chance)):
        return None
    name = f"of group {group.name!r} " if group.name else ""
    return (
        f"scores {name}are at chance level: half of the images have a best score of {middle:.3f} or less, and "
        f"{count} labels that all fit equally get 1/{count} = {chance:.3f} each. The model sees no difference between "
        "these labels in these images: try other prompts, or another model"
    )


def _given(thresholds: dict[str, float], default: float | None, names: list[str]) -> list[float | None]:
    return [thresholds.get(name, default) for name in names]
