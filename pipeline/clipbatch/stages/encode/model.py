"""Loads an OpenCLIP model, and states its facts: weights, preprocessing and how it scores."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import constants
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

from clipbatch.config import ModelSettings, models
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError, brief, nearest
from clipbatch.rundir.records import ModelFacts
from clipbatch.stages.encode.candidates import fitting_models
from clipbatch.stages.encode.hub import hub, locally_first, reachable
from clipbatch.storage.atomic import file_sha256

# The dtype of the image tower. In fp8, this is the dtype of the inputs and outputs of its products.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A loaded model. The text tower is in fp32; `cast` puts the image tower into the run's precision."""

    # A CLIP, CustomTextCLIP or CoCa of open_clip.
    module: Any
    tokenizer: Any
    name: str
    # The file of the weights.
    weights: Path
    weights_sha256: str
    # Size of the input in pixels.
    height: int
    width: int
    # For each channel, on a scale from 0 to 1.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Any
    resize_mode: Any
    fill: int
    # The factor for cosines, already exponentiated.
    logit_scale: float
    # Only models trained with a sigmoid loss have one.
    logit_bias: float | None

    def facts(self) -> ModelFacts:
        """The facts that decide scores, as `model.json` keeps them."""
        return ModelFacts(
            name=self.name,
            weights_sha256=self.weights_sha256,
            height=self.height,
            width=self.width,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            fill=self.fill,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
        )

    def cast(self, precision: str, device: str) -> None:
        """Move the image tower to `device` and convert it to `precision`. Layer norms still accumulate in fp32."""
        self.module.visual.to(device=device, dtype=DTYPES[precision], memory_format=torch.channels_last)


def name_and_weights(settings: ModelSettings) -> tuple[str, str | None]:
    """open_clip's name for the model of `settings`, and the tag or file of its weights; None if it has its own."""
    name, pretrained = models.openclip_name(settings.model), models.weights_file(settings.pretrained)
    if pretrained and pretrained.startswith("hf-hub:"):  # that repository holds the configuration of the model too
        return pretrained, None
    return name, pretrained


def _add_config(settings: ModelSettings) -> None:
    """Tell open_clip of a model whose configuration does not come with it."""
    if settings.model.endswith(".json") or settings.model == models.DEMO:
        open_clip.add_model_config(models.config_file(settings.model))


def load(settings: ModelSettings) -> Model:
    """The model of `settings`, in fp32 on the CPU, in evaluation mode.

    Raises: InputError if the model or its weights are unknown, neither cached nor reachable, or do not fit together.
    """
    name, pretrained = name_and_weights(settings)
    weights: Path | None = None
    try:
        _add_config(settings)
        weights = weights_of(name, pretrained)
        trained = trained_with(name, pretrained)
        quick_gelu = bool(trained.pop("quick_gelu", False))  # not in the lambda, which may be called twice
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about QuickGELU, which `force_quick_gelu` sets right
            module = locally_first(
                lambda: open_clip.create_model(
                    name,
                    pretrained=pretrained,
                    precision="fp32",
                    force_quick_gelu=quick_gelu,
                    force_preprocess_cfg=trained,
                )
            )
        tokenizer = locally_first(lambda: open_clip.get_tokenizer(name))
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"the model {name} needs the package {error.name}: pip install {error.name}") from error
    except Exception as error:  # open_clip and the readers of weights raise all kinds of exceptions for wrong files
        if others := weights and fitting_models(weights, name):
            raise InputError(
                f"the weights {pretrained or weights} are not those of {name}: by the size of their towers they may be "
                f"for {' or '.join(others)}; give that --model, or other --pretrained"
            ) from error
        raise InputError(
            f"the model {name} cannot be built with the weights {pretrained or '(its own)'}: {brief(error)}; "
            "check --model and --pretrained"
        ) from error
    module.eval().requires_grad_(False)
    preprocess = module.visual.preprocess_cfg
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    bias = getattr(module, "logit_bias", None)
    model = Model(
        module=module,
        tokenizer=tokenizer,
        name=name,
        weights=weights,
        weights_sha256=file_sha256(weights),
        height=height,
        width=width,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        interpolation=preprocess["interpolation"],
        resize_mode=preprocess["resize_mode"],
        fill=preprocess["fill_color"],
        logit_scale=float(module.logit_scale.exp()),
        logit_bias=None if bias is None else float(bias),
    )
    for fact, value in model.facts().items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise InputError(
                f"the model {name} has {value} as its {fact}, so it cannot score images: its weights or its "
                "configuration are damaged; choose other --pretrained or another --model"
            )
    return model


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of the model of `settings`, without its weights. Raises: InputError where it cannot be had."""
    name, _ = name_and_weights(settings)
    try:
        _add_config(settings)
        return locally_first(lambda: open_clip.get_tokenizer(name))
    except Exception as error:  # whatever open_clip and the hub's client make of a name
        raise InputError(f"the tokenizer of {name} cannot be had: {brief(error)}; check --model") from error


def find_weights(settings: ModelSettings) -> Literal["file", "cached", "reachable", "nowhere"]:
    """Where the weights of `settings` are. Downloads nothing; at most checks whether the hub answers.

    Raises: InputError if the model does not have such weights.
    """
    name, pretrained = name_and_weights(settings)
    if _local_weights(name, pretrained):
        return "file"
    if not name.startswith("hf-hub:"):
        _check_tag(name, pretrained)
    try:
        with hub(offline=True):
            _download(name, pretrained)
    except Exception:  # the hub's client raises all kinds of exceptions for files that it does not have
        return "reachable" if reachable() else "nowhere"
    return "cached"


def _local_weights(name: str, pretrained: str | None) -> Path | None:
    if pretrained and os.path.isfile(pretrained):
        return Path(pretrained)
    return _only_weights_in(Path(name.removeprefix("local-dir:"))) if name.startswith("local-dir:") else None


def weights_of(name: str, pretrained: str | None) -> Path:
    """The file of the weights; downloads it if it is neither a local file nor cached. Uses the network only then."""
    if local := _local_weights(name, pretrained):
        return local
    if not name.startswith("hf-hub:"):
        _check_tag(name, pretrained)
    try:
        return locally_first(lambda: _download(name, pretrained))
    except Exception as error:  # as above
        tag = f" --pretrained {pretrained}" if pretrained else ""
        raise InputError(
            f"the weights {pretrained or ''} of {name} are not cached here and cannot be downloaded "
            f"({constants.ENDPOINT}: {type(error).__name__}): download them once on a machine with a network "
            f"(clipbatch fetch {name}{tag}), copy {constants.HF_HUB_CACHE} from a machine that has them, or give "
            f"--pretrained FILE; --model {models.DEMO} needs no download"
        ) from error


def trained_with(name: str, pretrained: str | None) -> JsonObject:
    """How the weights were trained, as open_clip records it for a tag: preprocessing and QuickGELU.

    For a file of weights: the preprocessing that all tags of the model have in common. Then the name of the model
    decides about QuickGELU.
    Raises: InputError if the tags have different preprocessing.
    """
    tags = _tags(name)
    if pretrained in tags:
        return dict(open_clip.get_pretrained_cfg(name, pretrained))
    known = [
        {key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in cfg}
        for cfg in (open_clip.get_pretrained_cfg(name, tag) for tag in tags)
    ]
    if any(entry != known[0] for entry in known):
        raise InputError(
            f"--pretrained {pretrained}: the published weights of {name} differ in mean, std or resizing, so a file "
            "alone does not tell how to prepare images: use --model local-dir:FOLDER with the weights and an "
            "open_clip_config.json that has a preprocess_cfg"
        )
    return dict(known[0]) if known else {}


def quick_gelu(settings: ModelSettings) -> bool | None:
    """Whether the model uses QuickGELU, by its configuration; None where that is not on this machine."""
    name, pretrained = name_and_weights(settings)
    try:
        _add_config(settings)
        with hub(offline=True):
            config = open_clip.get_model_config(name)
    except (OSError, ValueError):  # not in the hub's cache, or a file or folder that has gone or is damaged
        return None
    if config is None:
        return None
    trained = trained_with(name, pretrained) if pretrained in _tags(name) else {}
    return bool(config.get("quick_gelu", False) or trained.get("quick_gelu", False))


def _tags(name: str) -> list[str]:
    """The published weights of a model; none if it is a folder or a repository."""
    return [] if ":" in name else list(open_clip.list_pretrained_tags_by_model(name))


def _check_tag(name: str, pretrained: str | None) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise InputError(f"{name} has several sets of weights: choose one with --pretrained {' | '.join(tags)}")
    if pretrained not in tags:
        raise InputError(
            f"--pretrained {pretrained!r} is neither a file nor one of {name}'s weights "
            f"({', '.join(tags) or 'it has none'}).{nearest(pretrained, tags)}"
        )


def _download(name: str, pretrained: str | None) -> Path:
    if name.startswith("hf-hub:"):
        return Path(download_pretrained_from_hf(name.removeprefix("hf-hub:")))
    return Path(download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))


def _only_weights_in(folder: Path) -> Path:
    files = [path for path in sorted(folder.glob("*")) if path.suffix in (".safetensors", ".pt", ".bin")]
    if len(files) != 1:
        raise InputError(f"{folder} holds {len(files)} files of weights (.safetensors, .pt, .bin): leave exactly one")
    return files[0]
