"""What `clipbatch tune` found, as a file that `clipbatch run --config` takes, and as a table."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from clipbatch import hardware
from clipbatch.atomic import publish
from clipbatch.config import Settings
from clipbatch.errors import InputError
from clipbatch.tune.search import Trial, Tuned

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
