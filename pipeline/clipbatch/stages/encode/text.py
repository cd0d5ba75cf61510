"""Encodes prompts into label features, in fp32, and caches them on disk."""

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
# The cached file ends with a digest. Files of old versions have no digest and another suffix; they are not read.
_SUFFIX = ".npy+sha256"
_DIGEST_BYTES = hashlib.sha256().digest_size


def text_features(model: Model, prompts: list[list[str]]) -> NDArray[np.float32]:
    """`text_LD`, float32: for each label the mean of the unit vectors of its prompts, scaled to unit length, as in
    `open_clip.build_zero_shot_classifier`. Read from the cache if it is there.
    """
    # The number of prompts in a batch is part of the key, because the last bits depend on it.
    key = json.dumps([model.name, model.weights_sha256, prompts, _PROMPTS_AT_ONCE])
    cached = cache_folder("text") / f"{hashlib.sha256(key.encode()).hexdigest()}{_SUFFIX}"
    try:
        content = cached.read_bytes()
        return features.parse(content[:-_DIGEST_BYTES], len(prompts), content[-_DIGEST_BYTES:].hex())
    except DamagedRecordError:
        _log.warning(f"the label features cached in {cached} are damaged; computing them again")
    except OSError:
        pass
    text_LD = _encode(model, prompts)
    content = features.npy_bytes(text_LD)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with publish(cached) as file:
            file.write(content + hashlib.sha256(content).digest())
    except (OSError, InputError):  # the run goes on without the cache
        pass
    return text_LD


def label_features(model: Model, labels: LabelSet) -> NDArray[np.float32]:
    """`text_features` of all prompts of `labels`; logs what a user should know about them."""
    for remark in prompt_remarks(model.module, model.tokenizer, model.name, labels):
        _log.warning(remark)
    return text_features(model, labels.prompts)


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/clipbatch/NAME`; without that variable, `~/.cache/clipbatch/NAME`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "clipbatch", name)


def _encode(model: Model, prompts: list[list[str]]) -> NDArray[np.float32]:
    """Each core encodes some of the prompts with one thread, as in the image encoder. So the features do not depend on
    how many cores the worker has."""
    texts = [text for texts in prompts for text in texts]
    torch.set_num_threads(1)
    if not texts:  # a run without labels; the length of an embedding is still of use
        with torch.inference_mode():
            return np.zeros((0, model.module.encode_text(model.tokenizer([""])).shape[1]), np.float32)

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
