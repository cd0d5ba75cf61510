"""A worker as its supervisor sees it; the one here is a process on this machine: JSON lines to and from it, its last
words, and its journal.
"""

from __future__ import annotations

import abc
import contextlib
import json
import queue
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from clipbatch.config.memory_limits import too_little_memory
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.stages.journal import Journal
from clipbatch.types import Reject, WorkerReport
from clipbatch.workers.child import Child, failure
from clipbatch.workers.devices import Seat
from clipbatch.workers.messages import BatchDone, Ended, Failed, Order, Report, from_json, to_json

Event = tuple["WorkerHandle", Report]


@dataclass(slots=True, kw_only=True)
class WorkDone:
    """What the workers of a run have reported."""

    # Rows by status, of each shard done.
    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    # Shards among them whose old part was better and has been kept: which one that is, and why.
    kept: dict[int, str] = field(default_factory=dict)
    # What each worker reported at its end.
    stages: list[WorkerReport] = field(default_factory=list)
    # Longest time that a worker took to start and load the model, seconds.
    load_s: float = 0.0
    restarts: int = 0
    # Rows (row_ids) that have ended a worker and are not touched again.
    quarantined: dict[int, Reject] = field(default_factory=dict)


class WorkerHandle(abc.ABC):
    """One worker, wherever it runs. What it reports, `Ended` included, reaches the supervisor as events."""

    def __init__(self, seat: Hashable) -> None:
        """seat: where it runs, in words as str(seat)."""
        self.seat = seat
        self.begun = self.heard = time.monotonic()
        # asks: it waits to be told what is next. finished: it has been told to end.
        self.loaded = self.asks = self.finished = self.hung = self.explained = False
        # That it has reported since its last part; all of them of the first shard that it has in hand.
        self.rows = self.bad = 0
        # What it has reported: type and text of an exception.
        self.failure = ""

    @abc.abstractmethod
    def send(self, order: Order) -> None:
        """Tell the worker what to do."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it at once."""


class WorkerProcess(WorkerHandle):
    """`clipbatch.workers.worker_main` on one seat of this machine. Its messages, and its end, are put into `events`."""

    seat: Seat

    def __init__(
        self, run: RunDir, plan: Plan, seat: Seat, runtime: dict[str, Any], events: queue.SimpleQueue[Event]
    ) -> None:
        super().__init__(seat)
        self._journal = Journal()
        self._events = events
        cores = ",".join(map(str, seat.cores))
        arguments = [str(run.path), plan.fingerprint, seat.device, cores, json.dumps(runtime), str(self._journal.fd)]
        self._child = Child("clipbatch.workers.worker_main", *arguments, pass_fds=[self._journal.fd])
        threading.Thread(target=self._forward, daemon=True).start()

    def send(self, order: Order) -> None:
        self._child.send(to_json(order))

    def kill(self) -> None:
        self._child.kill()

    def _forward(self) -> None:
        explained = False
        with contextlib.suppress(EOFError, ValueError):  # ValueError: its last words, cut off
            while True:
                message = from_json(self._child.receive())
                self._events.put((self, message))
                explained = explained or isinstance(message, (BatchDone, Failed))
        code = self._child.exit_code()
        log = tuple(self._child.log())
        if code and not explained and (refusal := too_little_memory("\n".join(log))):
            self._events.put((self, Failed(**failure(refusal))))
        self._child.close()
        in_flight = tuple(self._journal.in_flight())
        self._journal.close()
        self._events.put((self, Ended(code=code, in_flight=in_flight, log=log)))
