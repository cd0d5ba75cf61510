"""Engines: where worker processes run.

An `Engine` starts workers and tries suspect rows where a worker ran. It knows nothing about shards: with every engine,
the supervisor assigns shards, counts rows and decides which workers are restarted. `LocalEngine` runs workers on this
machine, one on each seat. `workers/ray/engine.py` runs them on a Ray cluster.

If several workers write traces (`--profile`), `numbered` gives each trace its own name.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clipbatch.config import Settings, SettingValues, models
from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.workers import devices
from clipbatch.workers.quarantine import OnResult, SuspectSearch
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import Event, WorkerHandle, WorkerProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What an engine needs to start workers for a run."""

    run: RunDir
    plan: Plan
    # The settings of this invocation: `Settings.runtime`.
    runtime: SettingValues
    # The supervisor's queue for all that workers report.
    events: queue.SimpleQueue[Event]
    # Shows a remark to the user.
    say: Callable[[str], None]


class Killable(Protocol):
    """A running search for the rows that kill workers."""

    def kill(self) -> None: ...


class Engine(Protocol):
    """Where workers run. Only one thread calls its methods."""

    # The device that workers use, as in `ModelSettings.device`. "auto": this machine decides.
    device: str

    @property
    def expecting(self) -> bool:
        """Whether workers may still arrive although there is none at present."""

    def open(self, context: WorkerContext) -> None:
        """Prepare for `context`. Called once, before the other methods."""

    def arrivals(self, open_shards: int) -> list[WorkerHandle]:
        """The workers that have started since the last call, at most `open_shards`, the number of unassigned ones."""

    def again(self, worker: WorkerHandle) -> WorkerHandle | None:
        """Start a new worker on the seat of one that has ended. None: the seat does not exist any more."""

    def give_up(self, worker: WorkerHandle) -> None:
        """Start no further worker on the seat of `worker`."""

    def search(self, worker: WorkerHandle, rows: list[int], on_result: OnResult) -> Killable:
        """Search for those of `rows` (row_ids) that kill a process, as `SuspectSearch` does, where `worker` ran."""

    def close(self) -> None:
        """End everything that is still running."""


def check_trace(path: str | None) -> None:
    """Raises: InputError if no file can be written at `path`; otherwise a run would find that out at its end."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)) or Path(path).is_dir():
        raise InputError(f"--profile {path}: not a file in an existing, writable folder: give the path of such a file")


def numbered(path: str | None, what: str, number: int, of: int) -> str | None:
    """`path` with `what` and `number` added to its name if there are several: trace.json -> trace-worker1.json."""
    if path is None or of == 1:
        return path
    file = Path(path)
    return str(file.with_name(f"{file.stem}-{what}{number}{file.suffix}"))


class LocalEngine:
    """Workers on this machine. Raises: InputError as `devices.seats` does, and for settings of other engines."""

    expecting = False

    def __init__(self, settings: Settings, rank: Rank) -> None:
        if settings.launch.cpus_per_worker is not None:
            raise InputError(
                f"--cpus-per-worker {settings.launch.cpus_per_worker} is for --engine ray; without it, the workers "
                "share all cores of this machine: leave it out"
            )
        self.device = settings.model.device
        self._settings, self._seats = settings, devices.seats(settings, rank)

    def open(self, context: WorkerContext) -> None:
        self._context = context
        on_gpu = self._seats[0].device.startswith("cuda") or self._settings.launch.workers_per_gpu
        if on_gpu and context.plan.rescored is None:
            gflop = models.gflop(context.plan.settings["model"])
            count = devices.workers_per_gpu(self._settings, gflop, min(len(seat.cores) for seat in self._seats))
            self._seats = devices.divided(self._seats, count)
        self._free = list(self._seats)

    def arrivals(self, open_shards: int) -> list[WorkerHandle]:
        seats, self._free = self._free[:open_shards], []
        return [self._start(seat) for seat in seats]

    def again(self, worker: WorkerHandle) -> WorkerHandle:
        return self._start(_seat(worker))

    def give_up(self, worker: WorkerHandle) -> None:
        pass

    def search(self, worker: WorkerHandle, rows: list[int], on_result: OnResult) -> SuspectSearch:
        return SuspectSearch(self._context.run, _seat(worker).device, rows, self._context.runtime, on_result)

    def close(self) -> None:
        pass

    def _start(self, seat: devices.Seat) -> WorkerHandle:
        trace = numbered(self._context.runtime["profile"], "worker", self._seats.index(seat), len(self._seats))
        runtime = self._context.runtime | {"profile": trace}
        return WorkerProcess(self._context.run, self._context.plan, seat, runtime, self._context.events)


def _seat(worker: WorkerHandle) -> devices.Seat:
    assert isinstance(worker, WorkerProcess)
    return worker.seat
