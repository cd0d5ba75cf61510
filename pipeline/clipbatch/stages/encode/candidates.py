"""Which models a file of weights may be for, by the sizes of its tensors. For the error about weights that do not fit.

The image tower's number of parameters and the text tower's vocabulary, width and length are compared with those of
open_clip's models. Several models can have towers of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import safe_open

from clipbatch.config import models

Shapes = Mapping[str, Sequence[int]]
# More models than this are not named.
_MAX_NAMED = 4
# Tensors of batch normalisation that are not parameters.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def fitting_models(weights: Path, tried: str) -> list[str]:
    """Names of the models whose towers have the sizes of those in `weights`, except `tried`; [] if none is known."""
    try:
        shapes = _shapes(weights)
    except Exception:  # the readers of weights raise all kinds of exceptions for other files
        return []
    count = sum(
        math.prod(shape) for name, shape in shapes.items() if name.startswith("visual.") and not name.endswith(_BUFFERS)
    )
    fits = [entry.name for entry in models.entries() if float(f"{count / 1e6:.4g}") == entry.image_mparams]
    alike = [name for name in fits if _text_fits(shapes, name)] or fits
    return [name for name in alike if name != tried][:_MAX_NAMED] if count else []


def _shapes(weights: Path) -> Shapes:
    """The shape of each tensor, by its name in open_clip. Reads as little of the file as its format allows."""
    if weights.suffix == ".safetensors":
        with safe_open(weights, framework="pt") as file:
            return {name.removeprefix("module."): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    state: Any = torch.load(weights, map_location="meta", weights_only=True)
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): tuple(tensor.shape) for name, tensor in state.items()}


def _text_fits(shapes: Shapes, name: str) -> bool:
    """Whether the text tower of the model has the vocabulary, width and length of the one in `shapes`."""
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if "hf_model_name" in text:
        return any(key.startswith("text.transformer.embeddings.") for key in shapes)
    for prefix in ("", "text."):
        if (tokens := shapes.get(f"{prefix}token_embedding.weight")) is not None:
            length = shapes.get(f"{prefix}positional_embedding", [0])[0]
            wanted = text.get("vocab_size", 49408), text.get("width", 512), text.get("context_length", 77)
            return (*tokens, length) == wanted
    return False
