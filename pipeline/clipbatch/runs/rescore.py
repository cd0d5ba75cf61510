"""Plan a run that scores the saved embeddings of another run with new labels, in a run directory of its own.

Its manifest is the other run's, its parts correspond to the other's one to one, and its identity says which run that
was, by fingerprint. From then on it is a run like any other: `pipeline.Worker` reads embeddings in place of images.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clipbatch.config import Settings
from clipbatch.config.label_set import SCORING
from clipbatch.config.labels import load
from clipbatch.config.scoring import check_scoring
from clipbatch.errors import InputError
from clipbatch.rundir import creation
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.schema import group_columns, result_fields
from clipbatch.runs import plan as planner
from clipbatch.storage.atomic import file_sha256
from clipbatch.storage.paths import as_path

_SCORES_AT_ONCE = 2**22
_MAX_ROWS_AT_ONCE = 4096


def plan(source: RunDir, run: RunDir, given: Mapping[str, Any], *, overwrite: bool) -> Plan:
    """Freeze the rescoring of `source` into `run`, or find that it is there already.

    given: labels, template, and the settings of the scope `output` that are to differ; embeddings are written again
    only if it says so.
    Raises: InputError where `source` is not finished or has no embeddings; OtherRunError where `run` is another run.
    """
    frozen = source.plan()
    _check_source(source, frozen, run)
    settings = _settings(frozen, given)
    if "template" in given and "labels" not in given:
        raise InputError("--template is for labels: give --labels with it")
    labels = load(settings.labels) if "labels" in given else frozen.labels
    labels = labels.by_rules(run.plan().labels.scoring if run.exists() and not overwrite else SCORING)
    settings = settings.replace(batch_size=_rows_at_once(frozen.shard_size, len(labels.names)))
    fields = result_fields(group_columns(labels, settings.output), settings.output, 0)
    identity = frozen.identity | settings.within("output") | {"batch_size": settings.batch_size} | labels.identity()
    identity["rescored"] = source.fingerprint()
    if run.exists() and not overwrite:
        standing = run.plan()
        run.check_same(standing, identity)
        return standing
    facts = source.model_facts() or {}
    check_scoring(labels, settings.output.score, facts.get("logit_bias") is not None, settings.model.model)
    new = dataclasses.replace(
        frozen, identity=identity, settings=settings.flat(), versions=planner.versions(), rescored=_named(source)
    )
    return _freeze(source, run, new, {field.name.lower() for field in fields}, overwrite)


def _check_source(source: RunDir, frozen: Plan, run: RunDir) -> None:
    as_path(_named(source))  # by which workers will open it; refused where that is not UTF-8
    if _named(source) == _named(run):
        raise InputError(f"--out {run.path} is the run that is to be rescored: choose another folder")
    if not frozen.settings["embeddings"]:
        raise InputError(
            f"{source.path} has no embeddings to score: label the images again with --embeddings, and rescore that run"
        )
    done = len(source.done(frozen))
    if done < frozen.shards or source.model_facts() is None:
        raise InputError(
            f"{source.path} is not finished ({done} of {frozen.shards} parts): clipbatch run --out {source.path} first"
        )


def _settings(frozen: Plan, given: Mapping[str, Any]) -> Settings:
    """The settings of the run that is rescored, with what is `given` in their place."""
    changes = {"template": (), "embeddings": False} | dict(given)
    if "layout" in given or "top_k" in given:  # each chooses a layout, so the other is not taken over
        changes = {"layout": "list", "top_k": None} | changes
    return frozen.run_settings().replace(**changes)


def _rows_at_once(shard_size: int, labels: int) -> int:
    """Rows of a batch: a matter of memory, and a divisor of the shard's size."""
    most = max(1, min(_MAX_ROWS_AT_ONCE, shard_size, _SCORES_AT_ONCE // labels))
    return next(size for size in range(most, 0, -1) if shard_size % size == 0)


def _check_columns(source: RunDir, manifest: Path, taken: set[str]) -> None:
    """Raises: InputError where the manifest carries a column with the name of one that the scores need."""
    for name in pq.read_schema(manifest).names:
        if name.lower() in taken:
            raise InputError(
                f"{source.path} carries a column {name!r} of its input, and the new scores need that name: rename the "
                "label group, or choose another --layout"
            )


def _freeze(source: RunDir, run: RunDir, plan: Plan, taken: set[str], overwrite: bool) -> Plan:
    """taken: names of the columns that the scores need, in lower case."""
    with creation.staged(run) as folder:
        for name, digest in plan.manifest_sha256.items():
            _bring(source, name, folder / name)
            if file_sha256(folder / name) != digest:
                raise InputError(f"the manifest {source.manifest / name} was changed after its run began: restore it")
            _check_columns(source, folder / name, taken)
        standing = creation.create(run, plan, folder, replace=overwrite)
    run.check_same(standing, plan.identity)
    return standing


def _bring(source: RunDir, name: str, target: Path) -> None:
    """A file of the manifest as `target`: linked, since neither run ever changes it, or copied."""
    place = source.manifest / name
    try:
        if isinstance(place, Path):
            target.unlink(missing_ok=True)
            try:
                os.link(place, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(place, target)
        else:
            target.write_bytes(place.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"cannot read the manifest {place}: {error.strerror or 'it is gone'}; restore it") from error


def _named(run: RunDir) -> str:
    """The run directory's url or absolute path."""
    return str(run.path.resolve()) if isinstance(run.path, Path) else str(run.path)
