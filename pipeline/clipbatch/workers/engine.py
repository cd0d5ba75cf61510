"""What an engine is: it starts workers, somewhere, and knows nothing of shards.

Whatever the engine, the supervisor hands out the shards, counts, and decides who is started again.

Workers on this machine, one on each seat.

Where `--profile` puts the traces of several processes. Knows nothing of how they are made.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clipbatch.config import Settings
from clipbatch.errors import InputError
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.workers import devices
from clipbatch.workers.quarantine import Found, SuspectSearch
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import Event, WorkerHandle, WorkerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What all workers of an engine work on."""

    run: RunDir
    plan: Plan
    # The settings of this invocation, `Settings.runtime`.
    runtime: dict[str, Any]
    # For what workers report.
    events: queue.SimpleQueue[Event]
    # For remarks on the run.
    say: Callable[[str], None]


class Killable(Protocol):
    """A search for the rows that kill, under way."""

    def kill(self) -> None: ...


class Engine(Protocol):
    """Where workers run. Called by one thread."""

    # What workers run on, as in `ModelSettings.device`; auto where this machine's own decide.
    device: str

    @property
    def expecting(self) -> bool:
        """Whether workers may still come where there is none."""

    def open(self, job: WorkerContext) -> None:
        """Take the job on. Called once, before all of what follows."""

    def arrivals(self, open_shards: int) -> list[WorkerHandle]:
        """Workers that have come since the last call; no more of them than `open_shards`, which nobody has."""

    def again(self, worker: WorkerHandle) -> WorkerHandle | None:
        """Start a worker in the place of one that has ended; None where its seat is gone too."""

    def give_up(self, worker: WorkerHandle) -> None:
        """No worker is to be started on that one's seat again."""

    def search(self, worker: WorkerHandle, rows: list[int], found: Found) -> Killable:
        """Look where the worker was for those of `rows` (row_ids) that kill, as `quarantine.Search` does."""

    def close(self) -> None:
        """End whatever still runs."""


def check_trace(path: str | None) -> None:
    """Raises: InputError where no file can be written at `path`, which would show only when the work is done."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)) or Path(path).is_dir():
        raise InputError(f"--profile {path}: it has to be a file in a folder that is there and can be written")


def numbered(path: str | None, what: str, number: int, of: int) -> str | None:
    """`path`, with `what` and `number` in its name where there are several: trace.json, trace-worker1.json."""
    if path is None or of == 1:
        return path
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}-{what}{number}{whole.suffix}"))


class LocalEngine:
    """Raises: InputError as `devices.seats` does, and for settings of other engines."""

    expecting = False

    def __init__(self, settings: Settings, rank: Rank) -> None:
        if settings.launch.cpus_per_worker is not None:
            raise InputError(
                f"--cpus-per-worker {settings.launch.cpus_per_worker} is for --engine ray; here all workers share the "
                "cores that there are: leave it out"
            )
        self.device = settings.model.device
        self._seats = devices.seats(settings, rank)
        self._free = list(self._seats)

    def open(self, job: WorkerContext) -> None:
        self._job = job

    def arrivals(self, open_shards: int) -> list[WorkerHandle]:
        seats, self._free = self._free[:open_shards], []
        return [self._start(seat) for seat in seats]

    def again(self, worker: WorkerHandle) -> WorkerHandle:
        return self._start(_seat(worker))

    def give_up(self, worker: WorkerHandle) -> None:
        pass

    def search(self, worker: WorkerHandle, rows: list[int], found: Found) -> SuspectSearch:
        return SuspectSearch(self._job.run, _seat(worker).device, rows, self._job.runtime, found)

    def close(self) -> None:
        pass

    def _start(self, seat: devices.Seat) -> WorkerHandle:
        trace = numbered(self._job.runtime["profile"], "worker", self._seats.index(seat), len(self._seats))
        runtime = self._job.runtime | {"profile": trace}
        return WorkerProcess(self._job.run, self._job.plan, seat, runtime, self._job.events)


def _seat(worker: WorkerHandle) -> devices.Seat:
    assert isinstance(worker, WorkerProcess)
    return worker.seat
