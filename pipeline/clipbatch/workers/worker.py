"""Workers from their supervisor's point of view.

`WorkerHandle` is a worker of any engine. `WorkerProcess` is a worker that runs as a process on this machine: it
exchanges JSON lines with the process, keeps the last lines of its log, and reads its journal when it has ended.
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

from clipbatch.config import SettingValues
from clipbatch.config.memory_limits import too_little_memory
from clipbatch.errors import ClipbatchError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.stages.journal import Journal
from clipbatch.types import Reject, WorkerReport
from clipbatch.workers.child import Child, failure
from clipbatch.workers.devices import Seat
from clipbatch.workers.messages import BatchDone, Ended, Failed, Order, Report, from_json, to_json
from clipbatch.workers.scheduler import Assignment

# How long a worker may take to load its model, including a download of the weights over a slow line.
LOADING_S = 3600.0
# How long a worker may take to report and exit after a Finish or Stop.
EXIT_TIMEOUT_S = 10.0

Event = tuple["WorkerHandle", Report]


@dataclass(slots=True, kw_only=True)
class WorkDone:
    """What the workers of a run have done so far."""

    # For each finished shard, how many rows have which status.
    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    # The finished shards whose old part was better and stays; the text names the part and the reason.
    kept: dict[int, str] = field(default_factory=dict)
    # The report of each worker that has finished.
    stages: list[WorkerReport] = field(default_factory=list)
    # The longest time that a worker took to start and load its model, seconds.
    load_s: float = 0.0
    restarts: int = 0
    # Rows, by row_id, that have killed a worker. No worker processes them again.
    quarantined: dict[int, Reject] = field(default_factory=dict)
    # The shard that this process wanted last was done by another one.
    outrun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A worker has ended although nobody told it to."""

    # How it ended, in words.
    cause: str
    # The worker got a SIGKILL that is not ours. It usually comes from an operator, sometimes from the kernel when
    # memory runs out. The first one is ignored; after a second one we look for the image that caused it.
    from_outside: bool
    # A signal ended it, or its GPU failed.
    by_itself: bool
    # How many workers have died while processing one of its shards.
    times: int
    # The row_ids of rows that it had started to decode and had not finished.
    suspects: list[int]
    # Its shards that no other worker is processing.
    lost: list[Assignment]
    # The last lines of its log.
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A search for the rows that killed a worker has ended."""

    # What each killing row did; an error if the search failed; None if it was cut off.
    killers: dict[int, Reject] | ClipbatchError | None
    death: Death


class WorkerHandle(abc.ABC):
    """One worker of any engine. All that it reports, including `Ended`, reaches the supervisor as events."""

    def __init__(self, seat: Hashable) -> None:
        """seat: where the worker runs; str(seat) names it in messages."""
        self.seat = seat
        # Seconds of time.monotonic().
        self.started = self.last_heard = time.monotonic()
        self.loaded = False
        # The worker waits for its next order.
        self.asks = False
        # The supervisor has sent Finish or Stop.
        self.dismissed = False
        # The supervisor has killed the worker because it did not answer.
        self.hung = False
        # The supervisor has explained to the user why loading takes so long.
        self.explained = False
        # Rows reported since the last part; they all belong to the first of the worker's assigned shards.
        self.rows = self.bad = 0
        # The exception that the worker has reported, if any.
        self.failure: Failed | None = None

    def failed_by(self, fault: str) -> bool:
        """Whether the worker has reported an exception of this `Failed.fault`."""
        return self.failure is not None and self.failure.fault == fault

    def overdue(self, busy: bool, timeout_s: float) -> bool:
        """Whether the worker has not been heard of for too long. busy: it has a shard. timeout_s: how long it may be
        silent then."""
        limit_s = EXIT_TIMEOUT_S if self.dismissed else timeout_s if self.loaded else LOADING_S
        expected = busy or self.dismissed or not self.loaded
        return expected and time.monotonic() - self.last_heard > limit_s

    @abc.abstractmethod
    def send(self, order: Order) -> None:
        """Send `order` to the worker."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Kill the worker at once."""


class WorkerProcess(WorkerHandle):
    """A process of `clipbatch.workers.worker_main` on this machine. Its messages and its end are put into `events`."""

    seat: Seat

    def __init__(
        self, run: RunDir, plan: Plan, seat: Seat, runtime: SettingValues, events: queue.SimpleQueue[Event]
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
        """Pass on every message of the process, and at its end report how it ended."""
        explained = False
        with contextlib.suppress(EOFError, ValueError):  # ValueError: the process died within a message
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
