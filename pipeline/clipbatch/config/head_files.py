"""Reads and writes heads: NAME.safetensors with a head's numbers, and NAME.toml beside it with what they are.

    head = 1                          version of this format
    layers = [768, 1024, 1]           length of the embedding, then how many numbers each layer gives
    activation = "none"               between layers: none, relu, gelu, silu or tanh
    result = "values"                 values; probabilities: a sigmoid of each output; classes: a softmax over all
    outputs = ["score"]               a name for each output
    unit_length = true                whether it was trained on embeddings of unit length
    model = "ViT-L-14"                the model that it was trained for, its weights, and whether it uses QuickGELU
    pretrained = "openai"
    quick_gelu = true
    weights_sha256 = "..."            digest of the file with the model's weights
    sha256 = "..."                    digest of the head's own numbers

The numbers of layer 0 are the tensors `layers.0.weight` (outputs x inputs) and `layers.0.bias`, and so on. A bias may
be left out, and so may the last four keys.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipbatch.config.heads import EXPECTED, NAME, OPTIONAL, Head, HeadFile, digest, of_json, to_json
from clipbatch.config.nesting import JsonObject
from clipbatch.config.settings import parse_toml
from clipbatch.errors import InputError, brief, nearest, reading_failed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipbatch.config.heads import Numbers

VERSION = 1
SUFFIX = ".safetensors"
# How a pickle begins, and a zip archive, which torch.save and numpy.savez write.
_NOT_SAFE = (b"\x80", b"PK\x03\x04")


def specs(value: str | Sequence[str] | Mapping[str, str | os.PathLike[str]]) -> tuple[str, ...]:
    """`value` as values of the option --head: one or several of NAME=FILE, or files by name."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={os.fspath(file)}" for name, file in value.items())
    return (value,) if isinstance(value, str) else tuple(value)


def load(wanted: Sequence[str] | None, standing: Mapping[str, HeadFile] | None = None) -> tuple[HeadFile, ...]:
    """The heads of --head. wanted: NAME=FILE of each; FILE is one of its two files.

    standing: those of the run that goes on, by the NAME=FILE that it was planned with. They take the place of files
    that have gone since, but not of a path that is mistyped.
    Raises: InputError naming the file and what is wrong with it.
    """
    standing = standing or {}
    heads: list[HeadFile] = []
    for spec in wanted or ():
        name, equals, file = spec.partition("=")
        if not equals or not file or not NAME.fullmatch(name):
            raise InputError(
                f"--head {spec!r}: write NAME=FILE, as in aesthetic=aesthetic.safetensors; NAME becomes a column, so "
                "it has letters, digits and _ alone"
            )
        if name.lower() in (other.head.name.lower() for other in heads):
            raise InputError(f"--head: {name!r} is there twice: give each head a name of its own")
        if os.path.lexists(file):
            heads.append(read(name, Path(file)))
        elif spec in standing:
            heads.append(standing[spec])
        elif planned := [other for other in standing if other.partition("=")[0] == name]:
            raise InputError(
                f"--head {spec}: there is no such file, and this run was planned with {planned[0]}: give that, correct "
                "the path, or go on with clipbatch run --out RUN alone"
            )
        else:
            heads.append(read(name, Path(file)))
    return tuple(heads)


def read(name: str, path: Path) -> HeadFile:
    """The head in `path`, which is either of its two files. name: how it is to be called. Raises: as `load`."""
    if path.suffix not in (SUFFIX, ".toml"):
        raise InputError(f"--head {name}={path}: a head is a {SUFFIX} file; clipbatch import-head makes one of others")
    description, weights = path.with_suffix(".toml"), path.with_suffix(SUFFIX)
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise reading_failed(f"the head {weights}", error) from error
    try:
        values = parse_toml(description.read_text(encoding="utf-8"))
    except OSError as error:
        raise reading_failed(f"{description}, which says what the head {weights} is,", error) from error
    except ValueError as error:
        raise InputError(f"{description} is not a TOML file: {error}; correct it, or make the head again") from error
    try:
        head, numbers = _of(name, values, parse(data))
    except ValueError as error:
        where = description if isinstance(error, _DescriptionError) else weights
        raise InputError(f"the head {where} cannot be used: {error}; correct it, or make the head again") from error
    return HeadFile(head=head, numbers=numbers)


class _DescriptionError(ValueError):
    """Something in the TOML file is wrong."""


def _of(name: str, values: JsonObject, tensors: Mapping[str, NDArray[np.float32]]) -> tuple[Head, Numbers]:
    values = dict(values)
    if (version := values.pop("head", None)) != VERSION:
        raise _DescriptionError(f"head is {version!r}, and this version of clipbatch knows head = {VERSION}")
    for key in values:
        if key not in EXPECTED:
            raise _DescriptionError(f"it has {key!r}, which no head has.{nearest(key, list(EXPECTED))}")
    for key in EXPECTED:
        if key not in values and key not in OPTIONAL:
            raise _DescriptionError(f"it has no {key}")
    stated = values.pop("sha256", None)
    try:
        head = of_json(values | {"name": name, "sha256": "0" * 64})
    except ValueError as error:
        raise _DescriptionError(str(error)) from error
    numbers = layers_of(head.layers, tensors)
    head = dataclasses.replace(head, sha256=digest(numbers))
    if stated not in (None, head.sha256):
        raise ValueError("its numbers are not those that its TOML file was written for (sha256 differs)")
    return head, numbers


def parse(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The tensors of a safetensors file, as float32. Raises: ValueError if it is none, or a value is not finite."""
    import numpy as np
    import safetensors.numpy

    if data.startswith(_NOT_SAFE):
        raise ValueError(
            "it is a pickle or an archive of torch or numpy, which is not loaded, since a pickle can run any program: "
            "clipbatch import-head makes a head of the layouts that it knows"
        )
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # its parser and numpy raise all kinds of exceptions
        raise ValueError(f"it is not a safetensors file of float32 or float16 ({brief(error)})") from error
    with np.errstate(over="ignore"):
        numbers = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating):
            raise ValueError(f"{name} holds {tensor.dtype}, not floating-point numbers")
        if not np.isfinite(numbers[name]).all():
            raise ValueError(f"{name} holds values that are not finite")
    return numbers


def layers_of(sizes: Sequence[int], tensors: Mapping[str, NDArray[np.float32]]) -> Numbers:
    """Weights and bias of each layer. Raises: ValueError if `tensors` are not those of layers of these sizes."""
    import numpy as np

    rest, layers = dict(tensors), []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = rest.pop(f"layers.{number}.weight", None)
        if weight is None:
            raise ValueError(f"it has no tensor layers.{number}.weight")
        bias = rest.pop(f"layers.{number}.bias", np.zeros(outputs, np.float32))
        if weight.shape != (outputs, inputs) or bias.shape != (outputs,):
            raise ValueError(
                f"layer {number} has weights of the shape {weight.shape} and a bias of {bias.shape}, and by its TOML "
                f"file these are {(outputs, inputs)} and {(outputs,)}"
            )
        layers.append((weight, bias))
    if rest:
        raise ValueError(f"it has a tensor {min(rest)!r}, which no layer has")
    return tuple(layers)


def tensors_of(file: HeadFile, prefix: str = "") -> dict[str, NDArray[np.float32]]:
    """The tensors of a head, as its file has them. prefix: for their names."""
    import numpy as np

    names = ("weight", "bias")
    return {  # safetensors writes the memory of an array, whatever its order
        f"{prefix}layers.{number}.{name}": np.ascontiguousarray(array)
        for number, layer in enumerate(file.numbers)
        for name, array in zip(names, layer, strict=True)
    }


def toml_text(head: Head) -> str:
    """The content of the TOML file of `head`."""
    values = {"head": VERSION, **{key: value for key, value in to_json(head).items() if key != "name"}}
    lines = [f"{key} = " + json.dumps(v, ensure_ascii=False).replace("\x7f", "\\u007f") for key, v in values.items()]
    return "\n".join(["# A head for clipbatch: see docs/guides/heads.md", *lines, ""])
