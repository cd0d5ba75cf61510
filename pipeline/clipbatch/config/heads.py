"""Heads: small networks on the embeddings of a model, such as a probe or an aesthetic score.

What a head is, and how `run.json` records it. Knows no file (`config.head_files`) and computes nothing
(`stages.heads`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from clipbatch.config import models
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

Activation = Literal["none", "relu", "gelu", "silu", "tanh"]
Result = Literal["values", "probabilities", "classes"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a head computes, and for which model. Raises: ValueError with the field that cannot be used."""

    # As the user calls it: its column, or the prefix of its columns.
    name: str
    # The length of the embedding, then how many numbers each layer gives.
    layers: tuple[int, ...]
    activation: Activation
    result: Result
    # A name for each number of the last layer.
    outputs: tuple[str, ...]
    unit_length: bool
    model: str
    pretrained: str | None = None
    # None: not known.
    quick_gelu: bool | None = None
    # Digest of the file with the model's weights; None: not known.
    weights_sha256: str | None = None
    # Digest of the head's own numbers (`digest`).
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name for a head: use letters, digits and _")
        _require("layers", self.layers, all(type(size) is int and size > 0 for size in self.layers))
        _require("layers", self.layers, len(self.layers) >= 2)
        _require("activation", self.activation, self.activation in get_args(Activation))
        _require("result", self.result, self.result in get_args(Result))
        _require("outputs", self.outputs, all(isinstance(name, str) and name.strip() for name in self.outputs))
        _require("outputs", self.outputs, len(set(self.outputs)) == len(self.outputs) == self.layers[-1])
        _require("outputs", self.outputs, self.result != "classes" or len(self.outputs) > 1)
        _require("unit_length", self.unit_length, isinstance(self.unit_length, bool))
        _require("quick_gelu", self.quick_gelu, isinstance(self.quick_gelu, (bool, type(None))))
        _require("model", self.model, isinstance(self.model, str) and self.model != "")
        _require("pretrained", self.pretrained, isinstance(self.pretrained, (str, type(None))))
        for name in ("sha256", "weights_sha256"):
            value = getattr(self, name)
            is_digest = isinstance(value, str) and _DIGEST.fullmatch(value) is not None
            _require(name, value, is_digest or (value is None and name != "sha256"))


# What each field of a head has to be, for messages.
EXPECTED = {
    "layers": "a list of two or more whole numbers above 0: the embedding's length, then what each layer gives",
    "activation": f"one of {', '.join(get_args(Activation))}",
    "result": f"one of {', '.join(get_args(Result))}",
    "outputs": "a list with a different name for each number of the last layer, two or more for classes",
    "unit_length": "true or false",
    "quick_gelu": "true or false",
    "model": "the name of a model",
    "pretrained": "the name of a model's weights",
    "sha256": "a digest of 64 hexadecimal digits",
    "weights_sha256": "a digest of 64 hexadecimal digits",
}
# Those that a head may lack in its TOML file.
OPTIONAL = ("pretrained", "quick_gelu", "weights_sha256", "sha256")


def _require(name: str, value: object, fits: bool) -> None:
    if not fits:
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{name} is {shown!r}, not {EXPECTED[name]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFile:
    """A head with its numbers: for each layer its weights (outputs x inputs) and its bias, float32."""

    head: Head
    numbers: Numbers


def digest(numbers: Numbers) -> str:
    """sha256 of the numbers of all layers, as little-endian float32: the same however a file stores them."""
    total = hashlib.sha256()
    for layer in numbers:
        for array in layer:
            total.update(array.astype("<f4").tobytes())
    return total.hexdigest()


def to_json(head: Head) -> JsonObject:
    """`head` as `run.json` records it, without what is not known."""
    values = dataclasses.asdict(head)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v is not None}


def of_json(values: JsonObject) -> Head:
    """The head whose `to_json` this is. Raises: ValueError."""
    lists = {key: tuple(v) if isinstance(v := values.get(key), list) else v for key in ("layers", "outputs")}
    for key, value in lists.items():
        _require(key, value, isinstance(value, tuple))
    try:
        return Head(**{**values, **lists})
    except TypeError as error:
        raise ValueError(str(error)) from error


def is_record(values: JsonObject) -> bool:
    """Whether `values` are what `to_json` makes of a head."""
    try:
        return to_json(of_json(values)) == values
    except ValueError:
        return False


def identity(heads: Sequence[Head]) -> JsonObject:
    """The field of a run's identity for its heads, in the order of their columns; None without heads."""
    return {"heads": [to_json(head) for head in heads] or None}


def from_identity(fields: Mapping[str, Any]) -> tuple[Head, ...]:
    """The heads whose `identity` is in `fields`."""
    return tuple(of_json(values) for values in fields.get("heads") or ())


def check(heads: Sequence[Head], model: str, pretrained: str | None, *, anyway: bool) -> None:
    """Whether the heads are for this model, as far as names tell. The first worker compares the weights.

    model, pretrained: as resolved. anyway: take also heads for another model, or for embeddings of another length than
    1. Raises: InputError naming the head, what differs and the remedy.
    """
    width = models.embedding_length(model)
    for head in heads:
        if width is not None:
            check_width(head, width, model)
        if anyway:
            continue
        if not head.unit_length:
            raise InputError(
                f"--head {head.name}=...: it was trained for embeddings as the model gives them, and clipbatch scales "
                "embeddings to unit length: make the head for these, or compute it nevertheless with --head-anyway"
            )
        if is_for(head, model, pretrained) is False:
            raise refused(head, f"{_described(head.model, head.pretrained)}, not for {_described(model, pretrained)}")


def check_width(head: Head, width: int, model: str) -> None:
    """Raises: InputError if the head takes embeddings of another length than `width`."""
    if head.layers[0] != width:
        raise InputError(
            f"--head {head.name}=...: it takes embeddings of {head.layers[0]} numbers, and those of {model} have "
            f"{width}: use a head that was trained for this model"
        )


def is_for(head: Head, model: str, pretrained: str | None) -> bool | None:
    """Whether the head was trained for this model, by the names of both; None if these do not tell."""
    names = [name.removesuffix("-quickgelu") for name in (head.model, model)]
    if names[0] != names[1]:
        return False if {head.model, model} <= set(models.names()) else None
    weights = [
        head.pretrained or models.default_weights(head.model),
        pretrained or models.default_weights(model),
    ]
    if weights[0] == weights[1]:
        return True
    are_tags = all(name is not None and re.fullmatch("[A-Za-z0-9_-]+", name) for name in weights)
    return False if are_tags else None


def refused(head: Head, trained_for: str) -> InputError:
    """The error for a head that was trained for something else."""
    return InputError(
        f"--head {head.name}=...: it was trained for {trained_for}: use another model or another head, or compute it "
        "nevertheless with --head-anyway"
    )


def _described(model: str, pretrained: str | None) -> str:
    return f"{model} ({pretrained})" if pretrained else model
