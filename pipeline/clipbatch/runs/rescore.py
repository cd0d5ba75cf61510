"""Plans a run that scores the saved embeddings of another run with new labels, in a run directory of its own.

The new run has the manifest of the other run, and a part for each part of the other run. Its identity contains the
fingerprint of the other run. Otherwise it is a run like any other: `ShardPipeline` reads embeddings instead of images.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clipbatch.config import Settings, head_files
from clipbatch.config import heads as head_records
from clipbatch.config.heads import HeadFile
from clipbatch.config.label_set import SCORING
from clipbatch.config.labels import load, wants_no_labels
from clipbatch.config.scoring import check_scoring
from clipbatch.errors import InputError
from clipbatch.rundir import creation, head_weights
from clipbatch.rundir.captions import CaptionColumn
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import group_columns, result_fields
from clipbatch.runs import heads as run_heads
from clipbatch.runs import plan as planner
from clipbatch.storage.atomic import file_sha256
from clipbatch.storage.paths import as_path

_SCORES_AT_ONCE = 2**22
_MAX_ROWS_AT_ONCE = 4096


def plan(source: RunDir, run: RunDir, overrides: Mapping[str, Any], *, overwrite: bool) -> Plan:
    """Freeze the rescoring of `source` into `run`, or return the plan that it has already.

    overrides: labels, template, heads, and settings of the scope `output` that are to differ. Embeddings are saved
    again, and images compared with captions, only if `overrides` says so.
    Raises: InputError if `source` is not finished or has no embeddings; OtherRunError if `run` is another run.
    """
    frozen = source.plan()
    _check_source(source, frozen, run)
    settings = _settings(frozen, overrides)
    if "template" in overrides and "labels" not in overrides:
        raise InputError("--template is for labels: give --labels with it")
    labels = load(settings.labels) if "labels" in overrides else frozen.labels
    labels = labels.by_rules(run.plan().labels.scoring if run.exists() and not overwrite else SCORING)
    if "head" in overrides:
        files = head_files.load(settings.labels.head, head_weights.standing(run, overwrite=overwrite))
    else:
        files = head_weights.load(source, frozen)
    heads = [file.head for file in files]
    if not (labels.groups or heads or wants_no_labels(settings)):
        raise InputError(
            f"{source.path} has no labels, so there is nothing to score: give --labels, --caption-column or --head"
        )
    settings = settings.replace(batch_size=_rows_at_once(frozen.shard_size, len(labels.names)))
    spec = settings.source.caption_column
    fields = result_fields(group_columns(labels, settings.output), settings.output, 0, heads, captions=spec is not None)
    identity = (
        frozen.identity | settings.within("output") | {"batch_size": settings.model.batch_size} | labels.identity()
    )
    identity |= {"rescored": source.fingerprint(), **head_records.identity(heads)}
    if run.exists() and not overwrite:
        existing = run.plan()
        run.check_same(existing, identity)
        if not run_heads.gives_way(run, existing, settings):
            return existing
        overwrite = True
    facts = source.model_facts()
    has_bias = facts is not None and facts["logit_bias"] is not None
    check_scoring(labels, settings.output.score, has_bias, settings.model.model)
    run_heads.check(settings, labels, files)
    new = dataclasses.replace(
        frozen,
        identity=identity,
        settings=settings.flat(),
        versions=planner.versions(),
        rescored=_absolute_path(source),
    )
    return _freeze(source, run, new, {field.name.lower() for field in fields}, files, overwrite)


def _check_source(source: RunDir, frozen: Plan, run: RunDir) -> None:
    as_path(_absolute_path(source))  # workers open it by this name; refused here if it is not UTF-8
    if _absolute_path(source) == _absolute_path(run):
        raise InputError(f"--out {run.path} is the run whose embeddings are scored: choose another folder")
    if not frozen.settings["embeddings"]:
        raise InputError(
            f"{source.path} has no embeddings to score: label the images again with --embeddings, and rescore that run"
        )
    done = len(source.done(frozen))
    if done < frozen.shards or source.model_facts() is None:
        raise InputError(
            f"{source.path} is not finished ({done} of {frozen.shards} parts): clipbatch run --out {source.path} first"
        )


def _settings(frozen: Plan, overrides: Mapping[str, Any]) -> Settings:
    """The settings of the run that is rescored, changed by `overrides`."""
    changes = {"template": (), "embeddings": False, "caption_column": None} | dict(overrides)
    if "layout" in overrides or "top_k" in overrides:  # each of them sets the layout, so the other is reset
        changes = {"layout": "list", "top_k": None} | changes
    return frozen.run_settings().replace(**changes)


def _rows_at_once(shard_size: int, labels: int) -> int:
    """The batch size: limited by memory, and a divisor of the shard size."""
    limit = max(1, min(_MAX_ROWS_AT_ONCE, shard_size, _SCORES_AT_ONCE // max(1, labels)))
    return next(size for size in range(limit, 0, -1) if shard_size % size == 0)


def _check_columns(source: RunDir, manifest: Path, taken: set[str]) -> None:
    """Raises: InputError if a column that the manifest carries has the name of a column of scores."""
    for name in pq.read_schema(manifest).names:
        if name.lower() in taken:
            raise InputError(
                f"{source.path} carries a column {name!r} of its input, and the new scores need that name: rename the "
                "label group or the head, choose another --layout, or label the images again without it (--columns)"
            )


def _freeze(
    source: RunDir, run: RunDir, plan: Plan, taken: set[str], heads: Sequence[HeadFile], overwrite: bool
) -> Plan:
    """taken: the names of the columns of scores, in lower case."""
    with creation.staged(run) as folder:
        for name, digest in plan.manifest_sha256.items():
            _copy_manifest_file(source, name, folder / name)
            if file_sha256(folder / name) != digest:
                raise InputError(
                    f"the manifest {source.manifest / name} has changed since its run was planned: restore it"
                )
            _check_columns(source, folder / name, taken)
            if spec := plan.settings.get("caption_column"):
                CaptionColumn.find(spec, pq.read_schema(folder / name), carried=True)
        valid = creation.create(run, plan, folder, replace=overwrite, heads=head_weights.content(heads))
    run.check_same(valid, plan.identity)
    return valid


def _copy_manifest_file(source: RunDir, name: str, target: Path) -> None:
    """Link the file as `target`, since neither run ever changes it; copy it if that is not possible."""
    path = source.manifest / name
    try:
        if isinstance(path, Path):
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, target)
        else:
            target.write_bytes(path.read_bytes())
    except FileNotFoundError as error:
        reason = error.strerror or "it does not exist any more"
        raise InputError(f"cannot read the manifest {path}: {reason}; restore it") from error


def _absolute_path(run: RunDir) -> str:
    """The URL or absolute path of the run directory."""
    return str(run.path.resolve()) if isinstance(run.path, Path) else str(run.path)
