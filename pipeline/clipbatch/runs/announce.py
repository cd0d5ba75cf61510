"""The first lines of a run's log: what is labelled, where, with which settings and versions, and what was planned."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from clipbatch import __version__
from clipbatch.config import Settings, SettingValues, from_flat, hardware
from clipbatch.errors import ClipbatchError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.runs.plan import DALI, versions
from clipbatch.workers import words
from clipbatch.workers.progress import Log, Progress

# How many inputs and how much of a setting the text names. JSON has all.
_MAX_INPUTS = 3
_MAX_TEXT = 80
# Those packages whose versions the text names.
_NAMED = ("torch", "open_clip_torch", *DALI)


def start(log: Log, settings: Settings, out: str | os.PathLike[str]) -> None:
    """Say what begins, before the input is listed. Settings without inputs: the run in `out` goes on."""
    given, machine, known = _given(settings), hardware.describe(), versions()
    shown = [f"{name}={_short(value)}" for name, value in given.items() if name != "inputs"]
    inputs = settings.source.inputs
    more = f" and {len(inputs) - _MAX_INPUTS} more" if len(inputs) > _MAX_INPUTS else ""
    what = f"labels {', '.join(map(_short, inputs[:_MAX_INPUTS]))}{more} into" if inputs else "labels what is open in"
    log.write(
        "start",
        f"clipbatch {__version__} {what} {os.fspath(out)} on {machine['host']} ({machine['cores']} cores)"
        + (f": {' '.join(shown)}" if shown else "")
        + f"; {', '.join(f'{name} {known[name]}' for name in _NAMED if name in known)}",
        out=os.fspath(out),
        inputs=list(inputs),
        settings=given,
        versions=known,
        hardware=machine,
    )


def planned(progress: Progress, plan: Plan, out: str, *, total: int, done: int) -> None:
    """Say what was planned, with the settings as they were resolved. total: rows of this process; done: of them."""
    settings = plan.settings
    weights = f" {settings['pretrained']}" if settings["pretrained"] else ""
    share = "" if total == plan.rows else f", {total} of them for this process"
    how = (
        f"{settings['model']}{weights} in {settings['precision']}, batches of {plan.batch_size}, "
        f"{settings['decoder']} decodes"
    )
    if plan.rescored is not None:
        how = f"saved embeddings of {plan.rescored}"
    parts = "1 part" if plan.shards == 1 else f"{plan.shards} parts"
    text = f"{plan.rows} images in {parts}{share}, {done} done: {how}"
    progress.write("plan", text, out=out, rows=plan.rows, total=total, done=done, parts=plan.shards, settings=settings)


@contextlib.contextmanager
def failure(log: Log, start_s: float) -> Iterator[None]:
    """If an error ends the context, say in a log file when, and after how long; the error itself is shown later.

    start_s: when the work began, in seconds of time.perf_counter().
    """
    try:
        yield
    except ClipbatchError as error:
        if log.is_file:
            after = words.seconds(time.perf_counter() - start_s)
            log.write("stopped", f"stopped after {after} with exit code {error.exit_code}", "error")
        raise


def _given(settings: Settings) -> SettingValues:
    """The settings that differ from the defaults."""
    default = from_flat({}).flat()
    return {name: value for name, value in settings.flat().items() if value != default[name]}


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    text = ascii(text)[1:-1]
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
