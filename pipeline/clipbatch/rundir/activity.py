"""Who is at work on a run: a small file of each supervisor in `.activity/`, for `clipbatch status`.

A supervisor writes its file when it begins and then every `EVERY_S` seconds, and removes it when it ends. One that was
killed leaves its file; so a file counts for `EXPIRES_S` only, by the time that is in it. The files are hints: nothing
but `status` reads them, nothing depends on them, and an entry that is damaged is ignored. The folder's name begins with
a dot, so no version of clipbatch, and no reader of Parquet, takes it for a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipbatch.config.nesting import parse_json
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.shapes import COUNT, NOTHING, NUMBER, SIZE, TEXT, Every, Shape, fits
from clipbatch.storage.atomic import is_alive, publish, remove_leftovers
from clipbatch.storage.paths import AnyPath, StorePath, list_names, modified

FOLDER = ".activity"
EVERY_S = 30.0
# Four files may be late or lost, or the clocks of two machines may differ by as much, before an entry counts no more.
EXPIRES_S = 4 * EVERY_S
# A file that is so old is removed by the next supervisor that ends.
_FORGOTTEN_S = 3600.0
_MAX_BYTES = 2**16
_THREADS = 16
# As `new_name` makes it. A host's name may have hyphens too.
_NAME = re.compile(r"(?P<host>.*)-(?P<pid>[0-9]+)-[0-9a-f]+\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a supervisor says of its work."""

    # The fingerprint of the plan: a run that was replaced may have left entries.
    plan: str
    host: str
    pid: int
    rank: int
    world_size: int
    devices: list[str]
    # When it began and when it wrote this; unix time, seconds.
    since: float
    time: float
    # Rows that it has done since it began, those in unfinished shards included, and the bad ones of them by status.
    rows: int
    bad: dict[str, int] = field(default_factory=dict)
    # Rows in shards that are not finished.
    rows_open: int = 0
    # Of the last two minutes; None: it has not worked for long enough.
    images_per_s: float | None = None
    bottleneck: str | None = None
    # By shard: how many workers have died over it since this supervisor began.
    deaths: dict[str, int] = field(default_factory=dict)


_SHAPE: dict[str, Shape] = {
    **dict.fromkeys(("plan", "host"), TEXT),
    **dict.fromkeys(("pid", "rank", "rows", "rows_open"), COUNT),
    "world_size": SIZE,
    "devices": Every(list, TEXT),
    **dict.fromkeys(("since", "time"), NUMBER),
    **dict.fromkeys(("bad", "deaths"), Every(dict, COUNT)),
    "images_per_s": (NUMBER, NOTHING),
    "bottleneck": (TEXT, NOTHING),
}


def new_name(host: str) -> str:
    """A name for the file of this process. A host may have several processes with one id, in containers."""
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"


def write(run: RunDir, name: str, entry: Entry) -> None:
    """Write `entry` as the file `name`. Raises: InputError."""
    folder = run.path / FOLDER
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):  # publish says what is wrong
            folder.mkdir(exist_ok=True)
    with publish(folder / name) as file:
        file.write(json.dumps(asdict(entry)).encode())


def remove(run: RunDir, name: str) -> None:
    """Remove the file `name`, and as `tidy`."""
    with contextlib.suppress(OSError, InputError):
        (run.path / FOLDER / name).unlink(missing_ok=True)
    tidy(run)


def tidy(run: RunDir) -> None:
    """Remove files of this host's processes that have ended, and files that were left long ago. Suppresses errors:
    nothing depends on what stays."""
    folder, this_host = run.path / FOLDER, socket.gethostname()
    with contextlib.suppress(OSError, InputError):
        remove_leftovers(folder)
        for name, written in modified(folder).items():
            match = _NAME.fullmatch(name)
            has_ended = match and match["host"] == this_host and not is_alive(int(match["pid"]))
            if has_ended or time.time() - written > _FORGOTTEN_S:
                (folder / name).unlink(missing_ok=True)
        if isinstance(folder, Path):
            folder.rmdir()  # fails unless it is empty


def read(run: RunDir, plan_fingerprint: str) -> list[Entry]:
    """The entries of supervisors that are at work on the plan, the first to begin first."""
    folder, now = run.path / FOLDER, time.time()
    try:
        names = sorted(name for name in list_names(folder) if name.endswith(".json"))
    except (OSError, InputError):
        return []
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = [entry for entry in pool.map(_read, (folder / name for name in names)) if entry is not None]
    current = (e for e in entries if e.plan == plan_fingerprint and abs(now - e.time) <= EXPIRES_S)
    return sorted(current, key=lambda entry: (entry.since, entry.host, entry.pid))


def _read(path: AnyPath) -> Entry | None:
    """The entry in a file; None if it is not one, or has just been removed."""
    try:
        if isinstance(path, StorePath):
            content = path.read_bytes()
        else:
            with open(path, "rb") as file:
                content = file.read(_MAX_BYTES)
        value: Any = parse_json(content)
    except (OSError, ValueError, InputError):
        return None
    return Entry(**{name: value[name] for name in _SHAPE}) if fits(value, _SHAPE) else None
