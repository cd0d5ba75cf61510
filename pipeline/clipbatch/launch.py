"""The supervisor: hands out shards to a worker process per device, restarts what died. Never touches an image.

Workers are kept two shards ahead, so that their pipelines do not drain between shards. A worker that ends, or does
not answer, is started again; the rows that it had between decode and done are tried alone (`quarantine`), and one that
kills again becomes a row with status crashed. Any end of the supervisor ends its workers.
"""

from __future__ import annotations

import collections
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clipbatch import interrupts
from clipbatch.config import Settings
from clipbatch.errors import ClipbatchError, TooManyBadError, from_message
from clipbatch.process import Event, WorkerProcess
from clipbatch.progress import Progress
from clipbatch.quarantine import ending, find_killers
from clipbatch.rundir import Plan, RunDir
from clipbatch.types import Reject

SHARDS_AHEAD = 2
MOST_DEATHS = 10
"""Ends of workers in a row, with no part finished in between, after which the run gives up."""
DEATHS_OF_A_BATCH = 3
"""Ends of workers over one shard after which the batches in flight are given up, if no row kills alone."""
EXPLAIN_AFTER_S = 15.0
_POLL_S = 1.0


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
    quarantined: dict[int, Reject] = field(default_factory=dict)
    """Rows (row_ids) that have ended a worker and are not touched again."""


class Supervisor:
    """Does assignments on `devices`, one worker process each."""

    def __init__(self, run: RunDir, plan: Plan, settings: Settings, devices: list[str], progress: Progress) -> None:
        """settings: of this invocation; only what may change between two of them counts."""
        self._run, self._plan, self._devices, self._progress = run, plan, devices, progress
        self._runtime = settings.runtime()
        self._bad_allowed = settings.bad_allowed(plan.rows)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._open: collections.deque[Assignment] = collections.deque()
        self._deaths: collections.Counter[int] = collections.Counter()
        self._deaths_in_a_row = 0
        self._last_error = ""
        self._processes: list[WorkerProcess] = []
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
                interrupts.check()
                self._explain_the_wait()
                self._end_the_silent()
                try:
                    process, message = self._events.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                process.heard = time.monotonic()
                handler: Callable[[WorkerProcess, dict[str, Any]], None] = getattr(self, f"_on_{message['event']}")
                handler(process, message)
        finally:
            for process in self._processes:
                process.kill()
        return self.done

    def _start(self, device: str) -> None:
        process = WorkerProcess(self._run, device, self._runtime, self._events)
        self._processes.append(process)
        self._feed(process)

    def _feed(self, process: WorkerProcess) -> None:
        while self._open and len(process.given) < SHARDS_AHEAD:
            assignment = self._open.popleft()
            process.given[assignment.shard] = assignment
            rows, message = self._plan.shard_rows(assignment.shard), {"shard": assignment.shard}
            known = {row: reject for row, reject in self.done.quarantined.items() if row in rows}
            process.send(message | ({} if assignment.rows is None else {"rows": assignment.rows}), known)
        if not self._open and not process.finished:
            process.finished = True
            process.send({"finish": True})

    def _explain_the_wait(self) -> None:
        for process in self._processes:
            if not process.loaded and not process.explained and time.monotonic() - process.begun > EXPLAIN_AFTER_S:
                process.explained = True
                self._progress.say(f"still loading the model on {process.device}; weights are fetched on first use")

    def _end_the_silent(self) -> None:
        limit_s = self._runtime["worker_timeout"]
        for process in self._processes:
            if process.loaded and process.given and time.monotonic() - process.heard > limit_s and not process.hung:
                process.hung = True
                process.kill()

    def _on_loaded(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        process.loaded = True
        self.done.load_s = max(self.done.load_s, round(time.monotonic() - process.begun, 3))

    def _on_alive(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        """It still reads; that it was heard of is all that counts."""

    def _on_batch(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        process.counted.update(rows=message["rows"], bad=message["bad"])
        self._progress.advance(message["rows"], message["bad"], message["bottleneck"])
        if self._bad_allowed is not None and self._progress.bad > self._bad_allowed:
            raise TooManyBadError(too_many_bad(self._progress.bad, self._bad_allowed, self._run))

    def _on_part(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        self.done.counts[message["shard"]] = message["counts"]
        process.given.pop(message["shard"], None)
        process.counted.clear()
        self._deaths_in_a_row = 0
        self._feed(process)

    def _on_stages(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        self.done.stages.append({name: value for name, value in message.items() if name != "event"})

    def _on_error(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        if message["exit_code"] != ClipbatchError.exit_code or not process.loaded:
            raise from_message(message["exit_code"], message["message"])
        if message["message"] == self._last_error:
            raise ClipbatchError(message["message"])
        self._last_error = message["message"]  # once it may be a passing one, such as of a GPU

    def _on_ended(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        self._processes.remove(process)
        suspects = [row for row in process.journal.in_flight() if row not in self.done.quarantined]
        process.journal.close()
        if not process.given and process.finished:
            return
        self._progress.take_back(process.counted["rows"], process.counted["bad"])
        cause = "as it did not answer" if process.hung else ending(message["code"])
        self._deaths.update(process.given.keys())
        self._deaths_in_a_row += 1
        self.done.restarts += 1
        if self._deaths_in_a_row > MOST_DEATHS:
            log = "\n".join(process.log)
            raise ClipbatchError(f"{MOST_DEATHS} workers in a row have ended, the last one {cause}:\n{log}")
        self._progress.say(f"a worker on {process.device} ended {cause}: it is started again")
        self._quarantine(process, suspects, cause, message["code"])
        self._open.extendleft(reversed(process.given.values()))
        self._start(process.device)

    def _quarantine(self, process: WorkerProcess, suspects: list[int], cause: str, code: int) -> None:
        """Find out which of `suspects` ended the worker. A SIGKILL comes from an operator as a rule, but it may be the
        kernel's, out of memory; so a single one proves nothing, and a second one is looked into."""
        deaths = max((self._deaths[shard] for shard in process.given), default=0)
        from_outside = code == -signal.SIGKILL and not process.hung
        if not suspects or (from_outside and deaths < 2):
            return
        self._progress.say(f"trying the {len(suspects)} images that it had in hand one by one")
        killers = find_killers(self._run, process.device, suspects, self._runtime)
        by_itself = code < 0 and not from_outside
        if not killers and by_itself and deaths >= DEATHS_OF_A_BATCH:
            error = f"alone it can be decoded; its batch has ended {deaths} workers, the last one {cause}"
            killers = {row: Reject(status="crashed", error=error) for row in suspects}
        for row, reject in killers.items():
            self._progress.say(f"row {row} gets status {reject.status}: {reject.error}")
        self.done.quarantined |= killers


def too_many_bad(bad: int, allowed: int, run: RunDir) -> str:
    """What is said when `--max-bad` is exceeded."""
    return (
        f"{bad} bad images, more than --max-bad allows ({allowed}): look at status and error in {run.parts}, or raise "
        "--max-bad; finished parts stay"
    )
