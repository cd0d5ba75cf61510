"""Prompts -> label features, in fp32, kept on disk so that they are computed once."""

from __future__ import annotations

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from clipbatch.config import hardware
from clipbatch.errors import InputError
from clipbatch.stages.encode.model import Model
from clipbatch.storage.atomic import publish

_PROMPTS_AT_ONCE = 64


def text_features(model: Model, prompts: list[list[str]]) -> NDArray[np.float32]:
    """`text_LD`: for each label the mean of its prompts' unit vectors, brought to unit length, as
    `open_clip.build_zero_shot_classifier` does it. Read from the cache where they are there already."""
    key = json.dumps([model.name, model.weights_sha256, prompts, _PROMPTS_AT_ONCE])  # the last bits depend on that too
    cached = cache_folder("text") / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    try:
        found: NDArray[np.float32] = np.load(cached, allow_pickle=False)
        if found.shape[0] == len(prompts):
            return found
    except (OSError, ValueError, EOFError):
        pass
    text_LD = _encode(model, prompts)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with publish(cached) as file:
            file.write(npy_bytes(text_LD))
    except (OSError, InputError):  # a cache that cannot be written is no reason to stop
        pass
    return text_LD


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/clipbatch/NAME`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "clipbatch", name)


def npy_bytes(array: NDArray[np.float32]) -> bytes:
    """`array` as the content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _encode(model: Model, prompts: list[list[str]]) -> NDArray[np.float32]:
    """Each core encodes prompts of its own with one thread, as the image encoder does, so that the features do not
    depend on how many cores the worker that computes them may use."""
    texts = [text for texts in prompts for text in texts]
    torch.set_num_threads(1)

    @torch.inference_mode()
    def encode(at: int) -> torch.Tensor:
        features: torch.Tensor = model.module.encode_text(
            model.tokenizer(texts[at : at + _PROMPTS_AT_ONCE]), normalize=True
        )
        return features

    with ThreadPoolExecutor(hardware.cores()) as pool:
        features = list(pool.map(encode, range(0, len(texts), _PROMPTS_AT_ONCE)))
    by_label = torch.split(torch.cat(features), [len(texts) for texts in prompts])
    text_LD = functional.normalize(torch.stack([label.mean(dim=0) for label in by_label]), dim=-1)
    return np.asarray(text_LD.float().numpy())
