"""Tries settings one after the other, keeps what is faster, and makes sure of it at the end.

A search along the coordinates: each setting's candidates beside the best found so far, the settings that matter most
first. What is kept has to be faster by more than `_NOISE`, and at the end faster than the defaults in each of two
rounds; else the defaults stand. Imports neither torch nor DALI, and decides nothing about a run's results: a run with
other settings is another run.

What `clipbatch tune` found, as a file that `clipbatch run --config` takes, and as a table.
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
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.runs import plan as planner
from clipbatch.storage.atomic import publish
from clipbatch.tools.tune.trials import Trier
from clipbatch.workers import devices, ranks
from clipbatch.workers.devices import Seat

# Gains below this are taken for noise: on a machine with nothing else to do, rounds of seconds differ by as much.
_NOISE = 1.03
_SAMPLE_ROWS = 65_536
# Of one trial.
_MIN_S, _MAX_S = 1.0, 10.0
_ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What some settings gave."""

    # Settings that differ from the run's defaults.
    changes: SettingValues
    images_per_s: float | None
    # The stage that the others waited for; or why there is no rate.
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a search found."""

    # Settings to change; empty where the defaults stand.
    chosen: SettingValues
    # Rate with `chosen` over that with the defaults, the lower of two rounds; None where it was not measured.
    gain: float | None
    trials: list[Trial]
    # Images that were at hand.
    rows: int
    seat: Seat
    # The settings that were tried, as a run has them without any of this.
    defaults: SettingValues


def tune(settings: Settings, budget_s: float, tell: Callable[[Trial], None]) -> Tuned:
    """Find settings for the images and the model of `settings` within `budget_s` seconds, loading included.

    settings: those that are given here are kept as they are. tell: called with each trial when it is done.
    Raises: InputError as planning and loading a model do, and for fp8, which changes the loaded model for good.
    """
    if settings.model.precision == "fp8":
        raise InputError("--precision fp8: tune with fp16 and run with fp8; it is decoding that is tuned")
    deadline = time.monotonic() + budget_s
    seat = devices.seats(settings, ranks.Rank())[0]
    given = {name for name, value in settings.flat().items() if value not in (None, "auto", 0.0)}
    limit = min(settings.source.limit or _SAMPLE_ROWS, _SAMPLE_ROWS)
    with tempfile.TemporaryDirectory(prefix="clipbatch-tune-") as folder:
        place = Path(folder, "run")
        own = {"limit": limit, "labels": "yes,no", "shard_size": None, "device": seat.device}
        plan = planner.plan(settings.replace(**own), place)
        trier = Trier(RunDir(place), seat, deadline)
        try:
            trier.load()
            search = _Search(trier, plan, deadline, tell)
            steps = {name: found for name, found in candidates(plan, seat).items() if name not in given}
            chosen, gain = search.find(steps)
        finally:
            trier.close()
    frozen = plan.run_settings().flat()
    return Tuned(
        chosen=chosen,
        gain=gain,
        trials=search.trials,
        rows=min(plan.rows, plan.shard_size),
        seat=seat,
        defaults={name: frozen[name] for name in steps},
    )


def candidates(plan: Plan, seat: Seat) -> dict[str, list[Any]]:
    """What to try for each setting beside its default, in the order in which they are tried."""
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
        "hw_decoder_load": [0.3, 0.5, 0.8, 0.95],
        "decode_threads": threads,
        "cpu_share": [0.05, 0.1, 0.2],
        "batch_size": [size // 2, 2 * size],
        "read_threads": [32, 64],
    }


class _Search:
    def __init__(self, trier: Trier, plan: Plan, deadline: float, tell: Callable[[Trial], None]) -> None:
        self._trier, self._plan, self._deadline, self._tell = trier, plan, deadline, tell
        self._to_come = 0
        self._longest_s = 0.0
        self.trials: list[Trial] = []

    def find(self, steps: dict[str, list[Any]]) -> tuple[SettingValues, float | None]:
        """The changes to make, and what they are sure to gain."""
        self._to_come = 1 + sum(map(len, steps.values())) + 2 * _ROUNDS
        best: SettingValues = {}
        best_rate = self._try({})
        for name, values in steps.items():
            for value in values:
                changes = {**best, name: value}
                if (rate := self._try(changes)) and best_rate and rate > best_rate * _NOISE:
                    best, best_rate = changes, rate
        if not best:
            return {}, None
        gains = []
        for _ in range(_ROUNDS):
            plain, tuned = self._try({}, kept_s=0), self._try(best, kept_s=0)
            if not plain or not tuned:
                return {}, None
            gains.append(tuned / plain)
        return (best, min(gains)) if min(gains) > _NOISE else ({}, None)

    def _try(self, changes: SettingValues, kept_s: float | None = None) -> float | None:
        """The rate with `changes`, if there is time. kept_s: for what comes later; default: for the last rounds."""
        kept_s = 2 * _ROUNDS * self._longest_s if kept_s is None else kept_s
        begun = time.monotonic()
        left_s = self._deadline - begun
        seconds = min(_MAX_S, max(_MIN_S, 0.7 * left_s / max(1, self._to_come)))  # some for what starts each
        self._to_come -= 1
        found = self._trier.rate(changes, seconds) if left_s > kept_s + _MIN_S else None
        if found:
            self._longest_s = max(self._longest_s, time.monotonic() - begun)
        found = found or {"error": "not measured: no time was left"}
        trial = Trial(
            changes=changes,
            images_per_s=found.get("images_per_s"),
            note=found.get("error") or f"bound by {found['bottleneck']}",
        )
        self.trials.append(trial)
        self._tell(trial)
        return trial.images_per_s


_MARK = "# Made by clipbatch tune"


def check_target(path: Path) -> None:
    """Raises: InputError where `path` is a file that `write` has not made, or lies in no folder."""
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}; make it, or choose another file")
    if path.exists() and (not path.is_file() or not path.read_bytes().startswith(_MARK.encode())):
        raise InputError(f"--out {path} is there and was not made by clipbatch tune: choose another file")


def write(path: Path, found: Tuned, settings: Settings) -> None:
    """Write the settings that `found` would change, as TOML, with what they were measured on. Whole or not at all."""
    check_target(path)
    with publish(path) as file:
        file.write(text(found, settings).encode())


def text(found: Tuned, settings: Settings) -> str:
    """The content of the file."""
    machine, model = hardware.describe(), settings.model.model
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    about = f"for {model}, {found.rows} images, on {machine['cpu']}, {len(found.seat.cores)} cores, {found.seat.device}"
    gain = f"{found.gain:.2f} times the defaults, at least, in two rounds" if found.gain else "the defaults stand"
    lines = [f"{_MARK} on {date}, {about}: {gain}."]
    lines += [f"{name} = {json.dumps(value)}" for name, value in found.chosen.items()]
    return "\n".join(lines) + "\n"


def row(trial: Trial, first: float | None) -> str:
    """A trial in a line. first: the rate of the defaults."""
    rate = trial.images_per_s
    figures = f"{rate:9.1f}" if rate else f"{'-':>9}"
    figures += f" {rate / first:12.2f}" if rate and first else f" {'-':>12}"
    changes = ", ".join(f"{name} {value}" for name, value in trial.changes.items()) or "the defaults"
    return f"{changes:44} {figures}  {trial.note}"


HEADER = f"{'settings':44} {'images/s':>9} {'to the first':>12}"
