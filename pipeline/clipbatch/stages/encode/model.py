"""Load an OpenCLIP model and state what it wants: weights, preprocessing, scoring. Decides nothing about images."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import open_clip
import torch
from huggingface_hub import constants
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

from clipbatch.config import ModelSettings, models
from clipbatch.errors import InputError, brief, nearest
from clipbatch.storage.atomic import file_sha256

_REACH_S = 10.0
T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
"""What the image tower computes in; in fp8, what its products are taken from and rounded to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model ready to encode: the text tower in fp32, the image tower in the run's precision once `cast`."""

    module: Any
    """open_clip's CLIP, CustomTextCLIP or CoCa."""
    tokenizer: Any
    name: str
    weights: Path
    """Their file."""
    weights_sha256: str
    height: int
    """Of the input, pixels."""
    width: int
    mean: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...]
    interpolation: Any
    resize_mode: Any
    fill: int
    logit_scale: float
    """Already exponentiated: what a cosine is multiplied by."""
    logit_bias: float | None
    """Only models that were trained with a sigmoid loss have one."""

    def facts(self) -> dict[str, Any]:
        """What decides scores, for `model.json`."""
        names = ("name", "weights_sha256", "height", "width", "mean", "std", "interpolation", "resize_mode", "fill")
        return {name: getattr(self, name) for name in (*names, "logit_scale", "logit_bias")}

    def cast(self, precision: str, device: str) -> None:
        """Move the image tower to `device` in `precision`; layer norms accumulate in fp32 whatever the precision."""
        self.module.visual.to(device=device, dtype=DTYPES[precision], memory_format=torch.channels_last)


def load(settings: ModelSettings) -> Model:
    """The model of `settings` in fp32 on the CPU, in evaluation mode.

    Raises: InputError where the model or its weights are not known, not cached and not reachable, or do not fit.
    """
    name, pretrained = models.openclip_name(settings.model), models.weights_file(settings.pretrained)
    if pretrained and pretrained.startswith("hf-hub:"):  # where open_clip keeps the model's configuration too
        name, pretrained = pretrained, None
    try:
        if settings.model.endswith(".json") or settings.model == models.DEMO:
            open_clip.add_model_config(models.config_file(settings.model))
        weights = _weights(name, pretrained)
        trained = trained_with(name, pretrained)
        quick_gelu = bool(trained.pop("quick_gelu", False))  # out here, since `_locally_first` may call twice
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a QuickGELU mismatch, which `quick_gelu` mends
            module = _locally_first(
                lambda: open_clip.create_model(
                    name,
                    pretrained=pretrained,
                    precision="fp32",
                    force_quick_gelu=quick_gelu,
                    force_preprocess_cfg=trained,
                )
            )
        tokenizer = _locally_first(lambda: open_clip.get_tokenizer(name))
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"the model {name} needs the package {error.name}: pip install {error.name}") from error
    except Exception as error:  # whatever open_clip and the readers of weights make of wrong files
        raise InputError(
            f"the model {name} cannot be made with the weights {pretrained or '(its own)'}: {brief(error)}; "
            "check --model and --pretrained"
        ) from error
    module.eval().requires_grad_(False)
    preprocess = module.visual.preprocess_cfg
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    bias = getattr(module, "logit_bias", None)
    return Model(
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


def find_weights(settings: ModelSettings) -> Literal["file", "cached", "reachable", "nowhere"]:
    """Where the weights of `settings` are; fetches nothing, and asks the network only whether the hub answers.

    Raises: InputError for weights that the model does not have.
    """
    name, pretrained = models.openclip_name(settings.model), models.weights_file(settings.pretrained)
    if pretrained and pretrained.startswith("hf-hub:"):
        name, pretrained = pretrained, None
    if _local_weights(name, pretrained):
        return "file"
    if not name.startswith("hf-hub:"):
        _check_tag(name, pretrained)
    try:
        with _hub(offline=True):
            _download(name, pretrained)
    except Exception:  # whatever the hub's client makes of what it does not have
        return "reachable" if _reachable() else "nowhere"
    return "cached"


def _local_weights(name: str, pretrained: str | None) -> Path | None:
    if pretrained and os.path.isfile(pretrained):
        return Path(pretrained)
    return _only_weights_in(Path(name.removeprefix("local-dir:"))) if name.startswith("local-dir:") else None


def _weights(name: str, pretrained: str | None) -> Path:
    """The weights' file, fetched where it is neither a file nor cached. Asks nobody on the network for what is here."""
    if local := _local_weights(name, pretrained):
        return local
    if not name.startswith("hf-hub:"):
        _check_tag(name, pretrained)
    try:
        return _locally_first(lambda: _download(name, pretrained))
    except Exception as error:  # whatever the hub's client makes of it
        tag = f" --pretrained {pretrained}" if pretrained else ""
        raise InputError(
            f"the weights {pretrained or ''} of {name} are neither cached here nor reachable "
            f"({constants.ENDPOINT}: {type(error).__name__}): fetch them once with a network (clipbatch fetch "
            f"{name}{tag}), copy {constants.HF_HUB_CACHE} from a machine that has them, or give "
            f"--pretrained FILE; --model {models.DEMO} needs no download"
        ) from error


@contextlib.contextmanager
def _hub(*, offline: bool) -> Iterator[None]:
    """Meanwhile the hub's client uses the network or its cache alone; then as the process had it before."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _locally_first(action: Callable[[], T]) -> T:
    """Do `action` with what is cached; where that does not do, with the network, if there is one."""
    try:
        with _hub(offline=True):
            return action()
    except Exception:
        if not _reachable():
            raise
        with _hub(offline=False):
            return action()


def trained_with(name: str, pretrained: str | None) -> dict[str, Any]:
    """What the weights were trained with and open_clip keeps beside a tag: preprocessing, QuickGELU.

    For a file, the preprocessing that all of the model's tags agree on; QuickGELU is then the model name's affair.
    Raises: InputError where they do not agree.
    """
    tags = [] if ":" in name else open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags:
        return dict(open_clip.get_pretrained_cfg(name, pretrained))
    known = [
        {key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in cfg}
        for cfg in (open_clip.get_pretrained_cfg(name, tag) for tag in tags)
    ]
    if any(entry != known[0] for entry in known):
        raise InputError(
            f"--pretrained {pretrained}: the published weights of {name} differ in mean, std or resizing, so a file "
            "alone does not say how images are to be prepared: use --model local-dir:FOLDER with the weights and an "
            "open_clip_config.json whose preprocess_cfg says it"
        )
    return dict(known[0]) if known else {}


def _check_tag(name: str, pretrained: str | None) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise InputError(f"{name} has several sets of weights: choose with --pretrained {' | '.join(tags)}")
    if pretrained not in tags:
        raise InputError(
            f"--pretrained {pretrained!r} is neither a file nor one of {name}'s weights "
            f"({', '.join(tags) or 'it has none'}).{nearest(pretrained, tags)}"
        )


def _download(name: str, pretrained: str | None) -> Path:
    if name.startswith("hf-hub:"):
        return Path(download_pretrained_from_hf(name.removeprefix("hf-hub:")))
    return Path(download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))


def _reachable() -> bool:
    """Whether the hub's host answers at all; its client tries for most of a minute where it does not."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=_REACH_S):
            return True
    except OSError:
        return False


def _only_weights_in(folder: Path) -> Path:
    found = [path for path in sorted(folder.glob("*")) if path.suffix in (".safetensors", ".pt", ".bin")]
    if len(found) != 1:
        raise InputError(f"{folder} holds {len(found)} files of weights (.safetensors, .pt, .bin): leave one")
    return found[0]


def check_device(device: str) -> None:
    """Raises: InputError where `device` is a GPU that torch cannot use."""
    if not device.startswith("cuda"):
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= found:
        raise InputError(f"--device {device}: torch finds {found} usable GPUs here; use --device cpu or another number")


def device_facts(device: str) -> dict[str, str | float]:
    """The device in words; on a GPU also the most memory that torch held on it, and what all that run on it hold now,
    DALI included, whose pools never shrink, in MiB."""
    if not device.startswith("cuda"):
        return {"device": device}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name(device),
        "gpu_peak_mib": torch.cuda.max_memory_reserved(device) // 2**20,
        "gpu_used_mib": (total - free) // 2**20,
    }
