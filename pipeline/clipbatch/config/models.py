"""Which models there are, what they cost and where their weights come from, known without importing torch.

`models.csv` is made by `scripts/list_models.py`, which counts each image tower's operations with torch.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbatch.config.nesting import parse_json
from clipbatch.errors import InputError, nearest, reading_failed

DEMO = "clipbatch-demo"
_DEMO_FOLDER = Path(__file__).parents[1] / "data" / "demo"
_DEFAULT_WEIGHTS = {"ViT-B-32": "laion2b_s34b_b79k", DEMO: "embedded"}
_UNKNOWN_GFLOP = 35.0
"""Assumed where no model is known to have that tower: a ViT-B/16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that open_clip can make."""

    name: str
    image_size: int
    """Pixels, of the shorter side."""
    image_gflop: float
    """10**9 multiplications and additions for one image in the image tower."""
    image_mparams: float
    """Millions of parameters of the image tower."""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """The table of models, the cheapest first."""
    with open(Path(__file__).parents[1] / "data" / "models.csv", newline="") as file:
        found = [
            Entry(
                name=row["name"],
                image_size=int(row["image_size"]),
                image_gflop=float(row["image_gflop"]),
                image_mparams=float(row["image_mparams"]),
            )
            for row in csv.DictReader(file)
        ]
    return tuple(sorted(found, key=lambda entry: (entry.image_gflop, entry.name)))


def gflop(model: str) -> float:
    """Cost of one image in the image tower, 10**9 multiplications and additions; of a configuration file, that of
    open_clip's model with the same image tower."""
    names = _with_the_tower_of(model) if model.endswith(".json") else {model}
    return next((entry.image_gflop for entry in entries() if entry.name in names), _UNKNOWN_GFLOP)


def _with_the_tower_of(config: str) -> set[str]:
    try:
        tower = _tower(Path(config))
        return {path.stem for path in _open_clips_configs().glob("*.json") if _tower(path) == tower}
    except (OSError, ValueError, AttributeError):  # whoever loads it will say so
        return set()


def _tower(config: Path) -> Any:
    return parse_json(config.read_bytes()).get("vision_cfg")


def names() -> list[str]:
    """open_clip's model names, read from its folder of configurations, and the embedded one."""
    return sorted([DEMO, *(path.stem for path in _open_clips_configs().glob("*.json"))])


def _open_clips_configs() -> Path:
    package = importlib.util.find_spec("open_clip")
    assert package
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0], "model_configs")


def wants_transformers(model: str) -> bool:
    """Whether open_clip makes the model's text tower by the package transformers; also where nobody can tell yet."""
    ours = model == DEMO or model.endswith(".json")
    try:
        return "hf_model_name" in (config_file(model) if ours else _open_clips_configs() / f"{model}.json").read_text()
    except OSError:  # one that says it on a hub, or in a folder
        return True


def has_logit_bias(model: str, pretrained: str | None) -> bool | None:
    """Whether the model was trained with a sigmoid loss, by its configuration; None where that is not on this disk."""
    if pretrained and pretrained.startswith("hf-hub:"):
        return None
    ours = model == DEMO or model.endswith(".json")
    try:
        text = (config_file(model) if ours else _open_clips_configs() / f"{model}.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return "init_logit_bias" in text


def canonical(model: str) -> str:
    """`model` as it is written in tables: ViT-B/32 becomes ViT-B-32.

    Raises: InputError for a model that there is not, with the nearest name.
    """
    if model.endswith(".json"):
        if not os.path.isfile(model):
            raise InputError(f"--model {model}: there is no such model config file")
        try:
            parse_json(Path(model).read_bytes())
        except OSError as error:
            raise reading_failed(f"--model {model}", error) from error
        except ValueError as error:
            raise InputError(f"--model {model} is not one of open_clip's model configs: {error}") from error
        return os.path.abspath(model)
    if model.startswith("local-dir:"):
        folder = os.path.abspath(model.removeprefix("local-dir:"))
        if not os.path.isdir(folder):
            raise InputError(f"--model {model}: there is no folder {folder}")
        return f"local-dir:{folder}"
    if model.startswith("hf-hub:"):
        return model
    known = names()
    if model.replace("/", "-") not in known:
        raise InputError(
            f"--model {model!r} is not known: `clipbatch models` lists what there is.{nearest(model, known)}"
        )
    return model.replace("/", "-")


def openclip_name(model: str) -> str:
    """The name by which open_clip knows `model`, which may be a config file."""
    return Path(model).stem if model.endswith(".json") else model


def config_file(model: str) -> Path:
    """The open_clip configuration file of a model that open_clip does not ship."""
    return _DEMO_FOLDER / f"{DEMO}.json" if model == DEMO else Path(model)


def default_weights(model: str) -> str | None:
    """The weights that a model gets without `--pretrained`."""
    return _DEFAULT_WEIGHTS.get(model)


def weights_file(pretrained: str | None) -> str | None:
    """`pretrained` with the embedded weights' name replaced by their file."""
    return str(_DEMO_FOLDER / f"{DEMO}.safetensors") if pretrained == "embedded" else pretrained


def check_weights(pretrained: str | None) -> None:
    """Raises: InputError where `pretrained` is clearly meant as a file and is not there."""
    looks_like_file = pretrained and (os.sep in pretrained or pretrained.endswith((".safetensors", ".pt", ".bin")))
    if pretrained and looks_like_file and not pretrained.startswith("hf-hub:") and not os.path.isfile(pretrained):
        raise InputError(f"--pretrained {pretrained}: there is no such file")
