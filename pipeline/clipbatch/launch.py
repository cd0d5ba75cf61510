"""The supervisor: starts a worker process per device, hands out shards, restarts what died. Never touches an image.

Workers are spoken to in JSON lines (see `worker`). A worker is kept two shards ahead, so that its pipeline does not
drain between them. Any end of the supervisor ends its workers, since their standard input closes.
"""

from __future__ import annotations

import collections
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clipbatch.errors import ClipbatchError, TooManyBadError, from_message
from clipbatch.progress import Progress
from clipbatch.rundir import RunDir

SHARDS_AHEAD = 2
MOST_DEATHS = 3
"""Deaths of workers over the same shard after which the run gives up."""
_LOG_LINES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A shard to hand out; `rows`: only these row_ids of it."""

    shard: int
    rows: tuple[int, ...] | None = None


@dataclass(slots=True, kw_only=True)
class WorkDone:
    """What the workers reported."""

    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    """Rows by status, of each shard done."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Each worker's seconds by stage, peak memory and device."""
    load_s: float = 0.0
    """Longest time that a worker took to start and load the model, seconds."""
    restarts: int = 0


class _Process:
    """A worker process and what it has been given."""

    def __init__(self, run: RunDir, device: str, events: queue.SimpleQueue[tuple[_Process, dict[str, Any]]]) -> None:
        self.device = device
        self.given: dict[int, Assignment] = {}
        self.finished = False
        self.log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._events = events
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clipbatch.worker", os.fspath(run.path), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._logging = threading.Thread(target=self._keep_log, daemon=True)
        self._logging.start()
        threading.Thread(target=self._forward, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, and its end is on the way as an event

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _keep_log(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())

    def _forward(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._events.put((self, json.loads(line)))
        code = self._process.wait()
        self._logging.join(timeout=1)
        self._events.put((self, {"event": "ended", "code": code}))


class Supervisor:
    """Does assignments on `devices`, one worker process each."""

    def __init__(self, run: RunDir, devices: list[str], progress: Progress, bad_allowed: int | None) -> None:
        self._run, self._devices, self._progress, self._bad_allowed = run, devices, progress, bad_allowed
        self._events: queue.SimpleQueue[tuple[_Process, dict[str, Any]]] = queue.SimpleQueue()
        self._open: collections.deque[Assignment] = collections.deque()
        self._deaths: collections.Counter[int] = collections.Counter()
        self._processes: list[_Process] = []
        self.done = WorkDone()

    def work(self, assignments: list[Assignment]) -> WorkDone:
        """Do all `assignments`.

        Raises: InputError as the workers do, TooManyBadError, ClipbatchError where workers keep dying.
        """
        self._open.extend(assignments)
        try:
            for device in self._devices[: len(assignments)]:
                self._start(device)
            while self._processes:
                process, message = self._events.get()
                handler: Callable[[_Process, dict[str, Any]], None] = getattr(self, f"_on_{message['event']}")
                handler(process, message)
        finally:
            for process in self._processes:
                process.kill()
        return self.done

    def _start(self, device: str) -> None:
        process = _Process(self._run, device, self._events)
        self._processes.append(process)
        self._feed(process)

    def _feed(self, process: _Process) -> None:
        while self._open and len(process.given) < SHARDS_AHEAD:
            assignment = self._open.popleft()
            process.given[assignment.shard] = assignment
            rows = {} if assignment.rows is None else {"rows": assignment.rows}
            process.send({"shard": assignment.shard, **rows})
        if not self._open and not process.finished:
            process.finished = True
            process.send({"finish": True})

    def _on_loaded(self, process: _Process, message: dict[str, Any]) -> None:
        self.done.load_s = max(self.done.load_s, message["seconds"])

    def _on_batch(self, process: _Process, message: dict[str, Any]) -> None:
        self._progress.advance(message["rows"], message["bad"], message["bottleneck"])
        if self._bad_allowed is not None and self._progress.bad > self._bad_allowed:
            raise TooManyBadError(
                f"{self._progress.bad} bad images, more than --max-bad allows ({self._bad_allowed}): look at status "
                f"and error in {self._run.parts}, or raise --max-bad; finished parts stay"
            )

    def _on_part(self, process: _Process, message: dict[str, Any]) -> None:
        self.done.counts[message["shard"]] = message["counts"]
        process.given.pop(message["shard"], None)
        self._feed(process)

    def _on_stages(self, process: _Process, message: dict[str, Any]) -> None:
        self.done.stages.append({name: value for name, value in message.items() if name != "event"})

    def _on_error(self, process: _Process, message: dict[str, Any]) -> None:
        raise from_message(message["exit_code"], message["message"])

    def _on_ended(self, process: _Process, message: dict[str, Any]) -> None:
        self._processes.remove(process)
        if not process.given and process.finished:
            return
        cause = _cause(message["code"])
        for shard in process.given:
            self._deaths[shard] += 1
            if self._deaths[shard] >= MOST_DEATHS:
                log = "\n".join(process.log)
                raise ClipbatchError(f"shard {shard} has ended {MOST_DEATHS} workers, the last one {cause}:\n{log}")
        self._progress.say(f"a worker on {process.device} ended {cause}: started again")
        self._open.extendleft(reversed(process.given.values()))
        self.done.restarts += 1
        self._start(process.device)


def _cause(code: int) -> str:
    """How a process ended, in words."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    except ValueError:
        return f"by signal {-code}"
