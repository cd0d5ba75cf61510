"""Heads for tests, written by hand: with safetensors and as TOML text, not by clipbatch."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

DEMO_WIDTH = 96
Numbers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def random_layers(rng: np.random.Generator, sizes: Sequence[int]) -> Numbers:
    """Layers whose outputs are of the order of 1 for embeddings of unit length."""
    return [
        (rng.normal(size=(after, before)).astype(np.float32), rng.normal(size=after).astype(np.float32))
        for before, after in itertools.pairwise(sizes)
    ]


def save_head(path: Path, numbers: Numbers, outputs: Sequence[str] = ("score",), **more: Any) -> Path:
    """Write a head for the embedded model to `path`. more: other values for its TOML file; None: without that key."""
    tensors = {}
    for number, (weight, bias) in enumerate(numbers):
        tensors |= {f"layers.{number}.weight": weight, f"layers.{number}.bias": bias}
    save_file(tensors, path)
    values = {
        "head": 1,
        "layers": [numbers[0][0].shape[1], *(len(bias) for _, bias in numbers)],
        "activation": "none",
        "result": "values",
        "outputs": list(outputs),
        "unit_length": True,
        "model": "clipbatch-demo",
        **more,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    path.with_suffix(".toml").write_text("\n".join(lines))
    return path
