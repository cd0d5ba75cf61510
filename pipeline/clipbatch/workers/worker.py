"""A worker as its supervisor sees it; the one here is a process on this machine: JSON lines to and from it, its last
words, and its journal.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.stages.journal import Journal
from clipbatch.types import Reject
from clipbatch.workers.child import safe_environment
from clipbatch.workers.devices import Seat

Event = tuple["Worker", dict[str, Any]]
_LOG_LINES = 40


@dataclass(slots=True, kw_only=True)
class WorkDone:
    """What the workers of a run have reported."""

    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    """Rows by status, of each shard done."""
    kept: dict[int, str] = field(default_factory=dict)
    """Shards among them whose old part was better and has been kept: which one that is, and why."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Each worker's seconds by stage, peak memory and device."""
    load_s: float = 0.0
    """Longest time that a worker took to start and load the model, seconds."""
    restarts: int = 0
    quarantined: dict[int, Reject] = field(default_factory=dict)
    """Rows (row_ids) that have ended a worker and are not touched again."""


class Worker(abc.ABC):
    """One worker, wherever it runs. Its messages, and its end, reach the supervisor as events.

    The end is `{"event": "ended", "code", "in_flight", "log"}`: exit code, rows (row_ids) between decode and done, and
    the last lines that it printed; also `cause`, in words, where no exit code is known.
    """

    def __init__(self, seat: Hashable) -> None:
        """seat: where it runs, in words as str(seat)."""
        self.seat = seat
        self.begun = self.heard = time.monotonic()
        self.loaded = self.asks = self.finished = self.hung = self.explained = False
        """asks: it waits to be told what is next. finished: it has been told to end."""
        self.rows = self.bad = 0
        """That it has reported since its last part; all of them of the first shard that it has in hand."""
        self.failure = ""
        """What it has reported: type and text of an exception."""

    @abc.abstractmethod
    def send(self, message: dict[str, Any], rejects: Mapping[int, Reject] | None = None) -> None:
        """Tell the worker something; rejects: rows of the shard that it must not touch."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it at once."""


class WorkerProcess(Worker):
    """`clipbatch.workers.worker_main` on one seat of this machine. Its messages, and its end, are put into `events`."""

    seat: Seat

    def __init__(
        self, run: RunDir, plan: Plan, seat: Seat, runtime: dict[str, Any], events: queue.SimpleQueue[Event]
    ) -> None:
        super().__init__(seat)
        self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._journal = Journal()
        self._events = events
        cores = ",".join(map(str, seat.cores))
        arguments = [str(run.path), plan.fingerprint, seat.device, cores, json.dumps(runtime)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clipbatch.workers.worker_main", *arguments, str(self._journal.fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[self._journal.fd],
            env=safe_environment(),
        )
        self._logging = threading.Thread(target=self._keep_log, daemon=True)
        self._logging.start()
        threading.Thread(target=self._forward, daemon=True).start()

    def send(self, message: dict[str, Any], rejects: Mapping[int, Reject] | None = None) -> None:
        if rejects:
            message = message | {"rejects": {row: asdict(reject) for row, reject in rejects.items()}}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has died, its pipe may be closed, and its end is on the way as an event

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, on a dead file server
            self._process.wait(timeout=5)

    def _keep_log(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._log.append(line.decode(errors="replace").rstrip())

    def _close_pipes(self) -> None:
        """Where many runs follow one another in a process, as from Python, open ones would add up."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe
            if pipe is self._process.stderr and self._logging.is_alive():  # a child of the worker's has it open
                continue
            with contextlib.suppress(OSError):  # words that were on their way to a worker that is dead
                pipe.close()

    def _forward(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                self._events.put((self, json.loads(line)))
            except ValueError:  # its last words, cut off
                break
        code = self._process.wait()
        self._logging.join(timeout=1)
        self._close_pipes()
        in_flight = self._journal.in_flight()
        self._journal.close()
        self._events.put((self, {"event": "ended", "code": code, "in_flight": in_flight, "log": list(self._log)}))
