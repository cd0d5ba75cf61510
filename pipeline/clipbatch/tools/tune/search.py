"""Searches for the fastest settings, and writes them to a file for `clipbatch run --config`.

The search changes one setting at a time, the most important first: it tries all candidates together with the best
settings so far. A candidate is kept if it is faster by more than `_NOISE`. At the end, the best settings are compared
with the defaults in two rounds; unless they are faster in both, the defaults stay. This module imports neither torch
nor DALI. It does not change the results of any run: a run with other settings is another run.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbatch.config import Settings, SettingValues, hardware
from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.storage.atomic import publish
from clipbatch.tools.tune.trials import TrialRunner
from clipbatch.workers import devices, ranks
from clipbatch.workers.devices import Seat

# Smaller gains are treated as noise. On an idle machine, rounds of seconds differ by this much.
_NOISE = 1.03
_SAMPLE_ROWS = 65_536
# How long a trial takes.
_MIN_S, _MAX_S = 1.0, 10.0
_ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of trying some settings."""

    # The settings that differ from the run's defaults.
    changes: SettingValues
    images_per_s: float | None
    # The slowest stage; or why there is no rate.
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result of a search."""

    # The settings to change; empty if the defaults stay.
    chosen: SettingValues
    # The rate with `chosen` divided by that with the defaults, the lower of two rounds. None: not measured.
    gain: float | None
    trials: list[Trial]
    # How many images were available.
    rows: int
    seat: Seat
    # The defaults of the settings that were tried.
    defaults: SettingValues


def tune(settings: Settings, budget_s: float, on_trial: Callable[[Trial], None]) -> Tuned:
    """Search for settings for the images and the model of `settings`, in `budget_s` seconds including loading.

    settings: those that the user has chosen are not changed. on_trial: called after each trial.
    Raises: InputError as planning and loading a model do; also for fp8, as that would change the loaded model.
    """
    if settings.model.precision == "fp8":
        raise InputError("--precision fp8: tune with --precision fp16, then run with fp8; tune measures decoding")
    deadline = time.monotonic() + budget_s
    seat = devices.seats(settings, ranks.Rank())[0]
    chosen_by_user = {name for name, value in settings.flat().items() if value not in (None, "auto", 0.0)}
    limit = min(settings.source.limit or _SAMPLE_ROWS, _SAMPLE_ROWS)
    with tempfile.TemporaryDirectory(prefix="clipbatch-tune-") as folder:
        run_path = Path(folder, "run")
        own = {"limit": limit, "labels": "yes,no", "shard_size": None, "device": seat.device}
        plan = planner.plan(settings.replace(**own), run_path)
        runner = TrialRunner(RunDir(run_path), seat, deadline)
        try:
            runner.load()
            search = _Search(runner, plan, deadline, on_trial)
            steps = {name: values for name, values in candidates(plan, seat).items() if name not in chosen_by_user}
            chosen, gain = search.find(steps)
        finally:
            runner.close()
    frozen, measured = plan.run_settings().flat(), {} if search.share is None else {"hw_decoder_load": search.share}
    return Tuned(
        chosen=chosen,
        gain=gain,
        trials=search.trials,
        rows=min(plan.rows, plan.shard_size),
        seat=seat,
        defaults={name: frozen[name] for name in steps} | measured,
    )


def candidates(plan: Plan, seat: Seat) -> dict[str, list[Any]]:
    """The values to try for each setting besides its default, in the order in which they are tried."""
    size, cores = plan.batch_size, len(seat.cores)
    threads = sorted({max(1, cores // 2), 2 * cores} - {cores})
    if seat.device == "cpu":
        decoder = plan.settings["decoder"]
        return {
            "decoder": [name for name in ("torchvision", "dali", "pil") if name != decoder],
            "batch_size": sorted({max(1, size // 2), 2 * size}),
            "decode_threads": threads,
            "read_threads": [4, 64],
        }
    return {
        "decode_threads": threads,
        "cpu_share": [0.05, 0.1, 0.2],
        "batch_size": [size // 2, 2 * size],
        "read_threads": [32, 64],
    }


def shares(measured: float) -> list[float]:
    """Shares of the JPEG engines to try besides the measured one, which is best for decoding alone. None where there
    are no engines."""
    near = {round(min(1.0, max(0.0, measured + step)), 2) for step in (-0.15, -0.05, 0.05)} if measured else set()
    return sorted(near - {measured})


class _Search:
    def __init__(self, runner: TrialRunner, plan: Plan, deadline: float, on_trial: Callable[[Trial], None]) -> None:
        self._runner, self._plan, self._deadline, self._on_trial = runner, plan, deadline, on_trial
        # Trials that are still to come, and the longest time that one has taken so far.
        self._remaining = 0
        self._longest_s = 0.0
        self.trials: list[Trial] = []
        # The share of the JPEG engines that the defaults were measured with, if a run would measure it, too.
        self.share: float | None = None

    def find(self, steps: dict[str, list[Any]]) -> tuple[SettingValues, float | None]:
        """The changes to make, and the gain that they have reached at least."""
        self._remaining = 1 + sum(map(len, steps.values())) + 2 * _ROUNDS
        best: SettingValues = {}
        best_rate = self._try({})
        if self.share is not None:
            steps = {"hw_decoder_load": shares(self.share), **steps}
            self._remaining += len(steps["hw_decoder_load"])
        for name, values in steps.items():
            for value in values:
                changes = {**best, name: value}
                if (rate := self._try(changes)) and best_rate and rate > best_rate * _NOISE:
                    best, best_rate = changes, rate
        if not best:
            return {}, None
        gains = []
        for _ in range(_ROUNDS):
            plain, tuned = self._try({}, reserve_s=0), self._try(best, reserve_s=0)
            if not plain or not tuned:
                return {}, None
            gains.append(tuned / plain)
        return (best, min(gains)) if min(gains) > _NOISE else ({}, None)

    def _try(self, changes: SettingValues, reserve_s: float | None = None) -> float | None:
        """The rate with `changes`, if there is time. reserve_s: kept for later trials; None: for the last rounds."""
        reserve_s = 2 * _ROUNDS * self._longest_s if reserve_s is None else reserve_s
        start = time.monotonic()
        left_s = self._deadline - start
        # A part of the time is for starting each trial.
        seconds = min(_MAX_S, max(_MIN_S, 0.7 * left_s / max(1, self._remaining)))
        self._remaining -= 1
        result = self._runner.rate(changes, seconds) if left_s > reserve_s + _MIN_S else None
        if result:
            self._longest_s = max(self._longest_s, time.monotonic() - start)
        result = result or {"error": "not measured: no time was left"}
        self.share = result.get("hw_decoder_load", self.share)
        trial = Trial(
            changes=changes,
            images_per_s=result.get("images_per_s"),
            note=result.get("error") or f"bound by {result['bottleneck']}",
        )
        self.trials.append(trial)
        self._on_trial(trial)
        return trial.images_per_s


_MARK = "# Made by clipbatch tune"


def check_target(path: Path) -> None:
    """Raises: InputError if `path` exists and `write` has not made it, or if its folder does not exist."""
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: the folder {path.parent} does not exist: create it, or choose another file")
    if path.exists() and (not path.is_file() or not path.read_bytes().startswith(_MARK.encode())):
        raise InputError(f"--out {path} exists and was not made by clipbatch tune: choose another file")


def write(path: Path, tuned: Tuned, settings: Settings) -> None:
    """Write the chosen settings as TOML, with what they were measured on. The file is replaced as a whole."""
    check_target(path)
    with publish(path) as file:
        file.write(text(tuned, settings).encode())


def text(tuned: Tuned, settings: Settings) -> str:
    """The content of the file."""
    machine, model = hardware.describe(), settings.model.model
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    about = f"for {model}, {tuned.rows} images, on {machine['cpu']}, {len(tuned.seat.cores)} cores, {tuned.seat.device}"
    gain = (
        f"at least {tuned.gain:.2f} times as fast as the defaults, in two rounds" if tuned.gain else "keep the defaults"
    )
    lines = [f"{_MARK} on {date}, {about}: {gain}."]
    lines += [f"{name} = {json.dumps(value)}" for name, value in tuned.chosen.items()]
    return "\n".join(lines) + "\n"


def row(trial: Trial, first: float | None) -> str:
    """A trial as a line. first: the rate of the defaults."""
    rate = trial.images_per_s
    figures = f"{rate:9.1f}" if rate else f"{'-':>9}"
    figures += f" {rate / first:12.2f}" if rate and first else f" {'-':>12}"
    changes = ", ".join(f"{name} {value}" for name, value in trial.changes.items()) or "the defaults"
    return f"{changes:44} {figures}  {trial.note}"


HEADER = f"{'settings':44} {'images/s':>9} {'to the first':>12}"
