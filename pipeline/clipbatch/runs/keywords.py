"""The function `clipbatch.run`: the command `run` with keyword arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from clipbatch.config import from_flat, head_files
from clipbatch.errors import InputError
from clipbatch.runs import run as api
from clipbatch.runs.report import Report

Name = str | os.PathLike[str]


def run(
    inputs: Name | Sequence[Name] = (),
    *,
    out: Name,
    labels: Name | Sequence[str] = "",
    retry_bad: bool = False,
    repair: bool = False,
    force: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    **settings: Any,
) -> Report:
    """Label `inputs` into the run directory `out` with worker processes, as the command `clipbatch run` does.

    The same call again resumes a run.

    >>> report = clipbatch.run("photos/", labels=["cat", "dog"], out="scores/", model="ViT-B-32", top_k=3)
    >>> report["status"]
    {'ok': 12034, 'truncated': 3}

    inputs: as for the command; none: continue the run in `out` as it was planned. settings: the command's options, by
    name with underscores (`batch_size`, `max_bad`, ...). Returns the report, as in `report.json`.
    Raises: InputError, TooManyBadError, ... of `clipbatch.errors`, one for each exit code of the command.
    """
    values = dict(settings)
    if isinstance(values.get("template"), str):
        values["template"] = (values["template"],)
    if values.get("head") is not None:
        values["head"] = head_files.specs(values["head"])
    for name in values.keys() & {"template", "columns"}:
        values[name] = values[name] if isinstance(values[name], str) else tuple(values[name])
    for name in values.keys() & {"pretrained", "root"}:
        values[name] = os.fspath(values[name])
    several = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    values["inputs"] = tuple(os.fspath(name) for name in several)
    if labels:
        values["labels"] = _spec(labels)
    return api.run(
        from_flat(values),
        os.fspath(out),
        retry_bad=retry_bad,
        repair=repair,
        force=force,
        overwrite=overwrite,
        quiet=quiet,
    )


def _spec(labels: Name | Sequence[str]) -> str:
    """`labels` as a value of the option --labels."""
    if isinstance(labels, (str, os.PathLike)):
        return os.fspath(labels)
    for name in labels:
        if "," in name:
            raise InputError(f"labels: {name!r} contains a comma: write the labels into a file, one on each line")
    return ",".join(labels) + ("," if len(labels) == 1 else "")
