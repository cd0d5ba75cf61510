"""Resolves `auto` settings and paths, and checks what only goes together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from clipbatch.config import Settings, auto, models
from clipbatch.config.label_set import LabelSet
from clipbatch.config.scoring import check_scoring
from clipbatch.config.validation import SettingError
from clipbatch.storage.uris import is_url


def resolve(settings: Settings) -> Settings:
    """`settings` with every `auto` resolved as for a new run on this machine. Raises: InputError."""
    return resolve_as(checked(settings), {})


def check_labels(settings: Settings, names: LabelSet) -> None:
    """Whether the labels go with the model and the kind of score of a new run. settings: resolved.

    Raises: InputError with the reason and the remedy.
    """
    model = settings.model
    check_scoring(names, settings.output.score, models.has_logit_bias(model.model, model.pretrained), model.model)


def checked(settings: Settings) -> Settings:
    """`settings` with the model's name as in the list of models, after a check of its weights."""
    source = settings.source
    if source.sample and source.limit:
        raise SettingError(f"sample {source.sample} and limit {source.limit} both say how many rows: leave one out")
    if source.seed is not None and not source.sample:
        raise SettingError(f"seed {source.seed} is for sample: add that, or leave it out")
    settings = settings.replace(model=models.canonical(settings.model.model))
    models.check_weights(settings.model.pretrained)
    return settings


def resolve_as(settings: Settings, frozen: Mapping[str, Any]) -> Settings:
    """As `resolve`, with the values of the identity `frozen` where the settings leave the choice."""
    weights = settings.model.pretrained or models.default_weights(settings.model.model)
    if weights and os.path.isfile(weights):
        weights = os.path.abspath(weights)
    root = settings.source.root
    if root and not is_url(root):
        root = os.path.abspath(root)
    return auto.resolve(settings.replace(pretrained=weights, root=root), models.gflop(settings.model.model), frozen)
