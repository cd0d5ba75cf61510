"""`clipbatch.run`: the command of that name as a function with keywords."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from clipbatch.config import from_flat
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
    """Label `inputs` into the run directory `out`, as `clipbatch run` does, in worker processes; the same call resumes.

    >>> report = clipbatch.run("photos/", labels=["cat", "dog"], out="scores/", model="ViT-B-32", top_k=3)
    >>> report["status"]
    {'ok': 12034, 'truncated': 3}

    inputs: what the command takes; none to go on with the run in `out` as it was begun. settings: its options, by name
    with underscores (`batch_size`, `max_bad`, ...). Returns the report, as in `report.json`.
    Raises: InputError, TooManyBadError, ... of `clipbatch.errors`, as the command's exit codes say.
    """
    given = dict(settings)
    if isinstance(given.get("template"), str):
        given["template"] = (given["template"],)
    for name in given.keys() & {"template", "columns"}:
        given[name] = given[name] if isinstance(given[name], str) else tuple(given[name])
    for name in given.keys() & {"pretrained", "root"}:
        given[name] = os.fspath(given[name])
    several = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    given["inputs"] = tuple(os.fspath(name) for name in several)
    if labels:
        given["labels"] = _spec(labels)
    return api.run(
        from_flat(given),
        os.fspath(out),
        retry_bad=retry_bad,
        repair=repair,
        force=force,
        overwrite=overwrite,
        quiet=quiet,
    )


def _spec(labels: Name | Sequence[str]) -> str:
    """`labels` as the option has them."""
    if isinstance(labels, (str, os.PathLike)):
        return os.fspath(labels)
    for name in labels:
        if "," in name:
            raise InputError(f"labels: {name!r} has a comma: write the labels into a file, one a line")
    return ",".join(labels) + ("," if len(labels) == 1 else "")
