"""The list of models: what each costs and which weights it gets. Does not import torch.

`scripts/list_models.py` writes `data/models.csv`. It counts the operations of each image tower with torch.
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
# The cost of a ViT-B/16, assumed for a model whose image tower is not in the list.
_UNKNOWN_GFLOP = 35.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that open_clip can create."""

    name: str
    # Shorter side of the model's input, in pixels.
    image_size: int
    # Operations of the image tower for one image, in 10**9 multiplications and additions.
    image_gflop: float
    # Parameters of the image tower, in millions.
    image_mparams: float


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All models in the list, the cheapest first."""
    with open(Path(__file__).parents[1] / "data" / "models.csv", newline="") as file:
        models = [
            Entry(
                name=row["name"],
                image_size=int(row["image_size"]),
                image_gflop=float(row["image_gflop"]),
                image_mparams=float(row["image_mparams"]),
            )
            for row in csv.DictReader(file)
        ]
    return tuple(sorted(models, key=lambda entry: (entry.image_gflop, entry.name)))


def gflop(model: str) -> float:
    """Cost of one image in the image tower, in 10**9 multiplications and additions.

    For a config file, this is the cost of the open_clip model with the same image tower.
    """
    names = _models_with_tower_of(model) if model.endswith(".json") else {model}
    return next((entry.image_gflop for entry in entries() if entry.name in names), _UNKNOWN_GFLOP)


def _models_with_tower_of(config: str) -> set[str]:
    try:
        tower = _tower(Path(config))
        return {path.stem for path in _open_clip_configs().glob("*.json") if _tower(path) == tower}
    except (OSError, ValueError, AttributeError):  # loading the model reports what is wrong
        return set()


def _tower(config: Path) -> Any:
    return parse_json(config.read_bytes()).get("vision_cfg")


def names() -> list[str]:
    """Names of open_clip's models, from its folder of config files, and of the embedded one."""
    return sorted([DEMO, *(path.stem for path in _open_clip_configs().glob("*.json"))])


def _open_clip_configs() -> Path:
    package = importlib.util.find_spec("open_clip")
    assert package
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0], "model_configs")


def wants_transformers(model: str) -> bool:
    """Whether the model's text tower needs the package transformers. True as well if that is not known yet."""
    own_config = model == DEMO or model.endswith(".json")
    path = config_file(model) if own_config else _open_clip_configs() / f"{model}.json"
    try:
        return "hf_model_name" in path.read_text()
    except OSError:  # the config is on a hub or in the model's folder
        return True


def has_logit_bias(model: str, pretrained: str | None) -> bool | None:
    """Whether the model was trained with a sigmoid loss, by its configuration; None where that is not on this disk."""
    if pretrained and pretrained.startswith("hf-hub:"):
        return None
    ours = model == DEMO or model.endswith(".json")
    try:
        text = (config_file(model) if ours else _open_clip_configs() / f"{model}.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return "init_logit_bias" in text


def embedding_length(model: str) -> int | None:
    """The length of the model's embeddings, by its configuration; None where that is not on this disk."""
    ours = model == DEMO or model.endswith(".json")
    try:
        config = parse_json((config_file(model) if ours else _open_clip_configs() / f"{model}.json").read_bytes())
    except (OSError, ValueError):
        return None
    length = config.get("embed_dim") if isinstance(config, dict) else None
    return length if isinstance(length, int) else None


def canonical(model: str) -> str:
    """The name of `model` in open_clip's list (ViT-B/32 becomes ViT-B-32), or the absolute path of a file or folder.

    Raises: InputError if there is no such model, with the most similar name.
    """
    if model.endswith(".json"):
        if not os.path.isfile(model):
            raise InputError(f"--model {model}: there is no such config file; check the path")
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
            raise InputError(f"--model {model}: there is no folder {folder}; check the path")
        return f"local-dir:{folder}"
    if model.startswith("hf-hub:"):
        return model
    known = names()
    if model.replace("/", "-") not in known:
        raise InputError(f"--model {model!r} is not known: `clipbatch models` lists all models.{nearest(model, known)}")
    return model.replace("/", "-")


def openclip_name(model: str) -> str:
    """open_clip's name for `model`, which may be a config file."""
    return Path(model).stem if model.endswith(".json") else model


def config_file(model: str) -> Path:
    """The config file of a model that does not come with open_clip."""
    return _DEMO_FOLDER / f"{DEMO}.json" if model == DEMO else Path(model)


def default_weights(model: str) -> str | None:
    """The weights of a model without `--pretrained`."""
    return _DEFAULT_WEIGHTS.get(model)


def weights_file(pretrained: str | None) -> str | None:
    """`pretrained`, with the name of the embedded weights replaced by their file."""
    return str(_DEMO_FOLDER / f"{DEMO}.safetensors") if pretrained == "embedded" else pretrained


def check_weights(pretrained: str | None) -> None:
    """Raises: InputError if `pretrained` looks like the path of a file, and there is no such file."""
    looks_like_file = pretrained and (os.sep in pretrained or pretrained.endswith((".safetensors", ".pt", ".bin")))
    if pretrained and looks_like_file and not pretrained.startswith("hf-hub:") and not os.path.isfile(pretrained):
        raise InputError(f"--pretrained {pretrained}: there is no such file; check the path")
