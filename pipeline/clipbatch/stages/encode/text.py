"""Prompts -> label features, in fp32, kept on disk so that they are computed once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from clipbatch.config import hardware
from clipbatch.config.label_set import LabelSet
from clipbatch.errors import InputError
from clipbatch.rundir import features
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.stages.encode.model import Model
from clipbatch.stages.encode.prompts import prompt_remarks
from clipbatch.storage.atomic import publish

_log = logging.getLogger(__name__)

_PROMPTS_AT_ONCE = 64
_SUFFIX = ".npy+sha256"
"""Of a file with its digest at its end; a file of an old version, without one, has another name and is not read."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def text_features(model: Model, prompts: list[list[str]]) -> NDArray[np.float32]:
    """`text_LD`: for each label the mean of its prompts' unit vectors, brought to unit length, as
    `open_clip.build_zero_shot_classifier` does it. Read from the cache where they are there already.
    """
    key = json.dumps([model.name, model.weights_sha256, prompts, _PROMPTS_AT_ONCE])  # the last bits depend on that too
    cached = cache_folder("text") / f"{hashlib.sha256(key.encode()).hexdigest()}{_SUFFIX}"
    try:
        content = cached.read_bytes()
        return features.parse(content[:-_DIGEST_BYTES], len(prompts), content[-_DIGEST_BYTES:].hex())
    except DamagedRecordError:
        _log.warning(f"the label features kept in {cached} were damaged: they are computed anew")
    except OSError:
        pass
    text_LD = _encode(model, prompts)
    content = features.npy_bytes(text_LD)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with publish(cached) as file:
            file.write(content + hashlib.sha256(content).digest())
    except (OSError, InputError):  # a cache that cannot be written is no reason to stop
        pass
    return text_LD


def label_features(model: Model, labels: LabelSet) -> NDArray[np.float32]:
    """`text_features` of all prompts of `labels`; logs what a user should know about them."""
    for remark in prompt_remarks(model.module, model.tokenizer, model.name, labels):
        _log.warning(remark)
    return text_features(model, labels.prompts)


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/clipbatch/NAME`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "clipbatch", name)


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
