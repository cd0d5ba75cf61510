"""The heads of a new run: whether they go with the rest of it, and when a plan gives way to one with others."""

from __future__ import annotations

from collections.abc import Sequence

from clipbatch.config import Settings, head_files
from clipbatch.config import heads as head_records
from clipbatch.config.heads import HeadFile
from clipbatch.config.label_set import LabelSet
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import check_head_columns, group_columns, result_fields


def result_names(settings: Settings, names: LabelSet, heads: Sequence[HeadFile] = ()) -> list[str]:
    """The names of the columns beside those of the manifest."""
    groups, captions = group_columns(names, settings.output), settings.source.caption_column is not None
    fields = result_fields(groups, settings.output, 0, [file.head for file in heads], captions=captions)
    return [field.name for field in fields]


def check(settings: Settings, names: LabelSet, files: Sequence[HeadFile]) -> None:
    """Whether the heads go with the model and with the other columns of a new run. settings: resolved.

    Raises: InputError with the reason and the remedy.
    """
    heads, model, anyway = [file.head for file in files], settings.model, bool(settings.labels.head_anyway)
    head_records.check(heads, model.model, model.pretrained, anyway=anyway)
    check_head_columns(heads, result_names(settings, names))


def load(settings: Settings, names: LabelSet) -> tuple[HeadFile, ...]:
    """The heads of `settings`, which are resolved, after `check`. Raises: InputError."""
    files = head_files.load(settings.labels.head)
    check(settings, names, files)
    return files


def gives_way(run: RunDir, frozen: Plan, settings: Settings) -> bool:
    """Whether the plan `frozen`, which is for the same run, gives way to one with another --head-anyway: a worker has
    refused its heads, or none has begun."""
    return frozen.settings.get("head_anyway") != settings.labels.head_anyway and run.model_facts() is None
