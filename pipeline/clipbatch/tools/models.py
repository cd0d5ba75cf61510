"""Downloads models, and keeps the speeds of models that `make bench` has measured on this machine in a small cache."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TypedDict, cast

from clipbatch.config import models
from clipbatch.config.nesting import parse_json
from clipbatch.storage.atomic import publish
from clipbatch.workers import child


def speeds_file() -> Path:
    """`$XDG_CACHE_HOME/clipbatch/speeds.json`; without that variable, below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clipbatch", "speeds.json")


def measured() -> dict[str, float]:
    """Images/s of each model that was measured on this machine. Empty if none was, or the file is damaged."""
    return {model: entry["images_per_s"] for model, entry in _entries().items() if entry["host"] == platform.node()}


def note(model: str, images_per_s: float, date: str) -> None:
    """Save a measured speed, in place of an older one. Raises: InputError if the cache cannot be written."""
    entries = _entries() | {model: Speed(images_per_s=images_per_s, host=platform.node(), date=date)}
    target = speeds_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as file:
        file.write(json.dumps(entries, indent=2).encode())


class Speed(TypedDict):
    """The measured speed of a model."""

    images_per_s: float
    host: str
    date: str


class Fetched(TypedDict):
    """A downloaded model. weights: the path of the file. cache: the hub's cache if the file is in it, else None."""

    model: str
    pretrained: str | None
    weights: str
    bytes: int
    sha256: str
    cache: str | None


def _entries() -> dict[str, Speed]:
    try:
        speeds = parse_json(speeds_file().read_bytes())
        return {model: entry for model, entry in speeds.items() if float(entry["images_per_s"]) > 0 and entry["host"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def fetch(model: str, pretrained: str | None = None) -> Fetched:
    """Download a model's weights, configuration and tokenizer, unless they are on this machine.

    Raises: InputError if the model is unknown or cannot be downloaded.
    """
    model = models.canonical(model)
    pretrained = pretrained or models.default_weights(model)
    models.check_weights(pretrained)
    (files,) = child.messages_of("clipbatch.tools.models_main", model, pretrained or "", aloud=True)
    return cast(Fetched, {"model": model, "pretrained": pretrained, **files})
