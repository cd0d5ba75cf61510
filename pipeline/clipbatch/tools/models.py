"""Images a second of whole runs, as `make bench` last measured them on this machine: one small file in the cache."""

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
    """`$XDG_CACHE_HOME/clipbatch/speeds.json`, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "clipbatch", "speeds.json")


def measured() -> dict[str, float]:
    """Images/s by model, measured on this machine; nothing where nothing was, or what is there is damaged."""
    return {model: entry["images_per_s"] for model, entry in _entries().items() if entry["host"] == platform.node()}


def note(model: str, images_per_s: float, date: str) -> None:
    """Remember a figure; the last one of a model counts. Raises: InputError where the cache cannot be written."""
    entries = _entries() | {model: Speed(images_per_s=images_per_s, host=platform.node(), date=date)}
    target = speeds_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as file:
        file.write(json.dumps(entries, indent=2).encode())


class Speed(TypedDict):
    """An entry of the file."""

    images_per_s: float
    host: str
    date: str


class Fetched(TypedDict):
    """A model that is on this machine."""

    model: str
    pretrained: str | None
    weights: str
    bytes: int
    sha256: str
    cache: str | None


def _entries() -> dict[str, Speed]:
    try:
        found = parse_json(speeds_file().read_bytes())
        return {model: entry for model, entry in found.items() if float(entry["images_per_s"]) > 0 and entry["host"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def fetch(model: str, pretrained: str | None = None) -> Fetched:
    """Fetch a model's weights, configuration and tokenizer for machines without a network, unless they are here.

    Returns where the weights lie (`weights`, with `bytes` and `sha256`), and the hub's `cache` that holds them, None
    where they lie elsewhere. Raises: InputError where the model is not known or cannot be had.
    """
    model = models.canonical(model)
    pretrained = pretrained or models.default_weights(model)
    models.check_weights(pretrained)
    (found,) = child.messages_of("clipbatch.tools.models_main", model, pretrained or "", aloud=True)
    return cast(Fetched, {"model": model, "pretrained": pretrained, **found})
