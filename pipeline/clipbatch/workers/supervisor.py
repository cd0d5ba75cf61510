"""The supervisor: hands out shards to the workers of an engine, restarts what died. Never touches an image.

The `scheduler` decides who does what, and the engine where workers run. A worker that ends, or does not answer, is
started again; the rows that it had between decode and done are tried alone (`quarantine`) while the others go on, and
one that kills again becomes a row with status crashed. Any end of the supervisor ends its workers.
"""

from __future__ import annotations

import collections
import queue
import signal
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from clipbatch.errors import ClipbatchError, TooManyBadError, from_message
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.types import PartDone, Reject, WorkerReport
from clipbatch.workers import signals
from clipbatch.workers.child import describe_exit
from clipbatch.workers.engine import Engine, Killable, WorkerContext
from clipbatch.workers.messages import (
    Alive,
    Assign,
    BatchDone,
    Ended,
    Failed,
    Finish,
    Loaded,
    Ready,
    Remark,
    Report,
    Stop,
)
from clipbatch.workers.progress import Progress
from clipbatch.workers.scheduler import Assignment, ShardScheduler
from clipbatch.workers.worker import WorkDone, WorkerHandle

# Ends of workers on a seat in a row, with no part finished in between, after which it is given up.
MAX_DEATHS = 10
# Ends of workers over one shard after which the batches in flight are given up, if no row kills alone.
DEATHS_OF_A_BATCH = 3
EXPLAIN_AFTER_S = 15.0
# Within which a worker has loaded its model, weights fetched over a slow line included.
LOADING_S = 3600.0
# Within which a worker that was told to end has reported and ended.
LAST_WORDS_S = 10.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
    """The end of a worker that nobody wanted."""

    cause: str
    # SIGKILL comes from an operator as a rule, but it may be the kernel's, out of memory; so a single one proves
    # nothing, and a second one is looked into.
    from_outside: bool
    # By a signal.
    by_itself: bool
    # How many workers have ended over one of its shards.
    times: int
    # Rows (row_ids) that it had between decode and done.
    suspects: list[int]
    # What nobody does now.
    lost: list[Assignment]
    # Its last lines.
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Searched:
    """A search for the rows that killed a worker has ended."""

    killers: dict[int, Reject] | ClipbatchError | None
    death: _Death


class Supervisor:
    """Does assignments with the workers of `engine`."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        runtime: dict[str, Any],
        engine: Engine,
        progress: Progress,
        bad_allowed: int | None = None,
    ) -> None:
        """runtime: the settings of this invocation, `Settings.runtime`. bad_allowed: how many images may be bad, those
        that `progress` begins with included; None: any number."""
        self._run, self._plan, self._engine, self._progress = run, plan, engine, progress
        self._runtime, self._bad_allowed = runtime, bad_allowed
        self._events: queue.SimpleQueue[tuple[WorkerHandle, Any]] = queue.SimpleQueue()
        self._scheduler = ShardScheduler([])
        self._deaths: collections.Counter[int] = collections.Counter()
        self._deaths_in_a_row: collections.Counter[Hashable] = collections.Counter()
        self._last_error = ""
        self._said: set[tuple[str, str]] = set()
        self._processes: list[WorkerHandle] = []
        self._searches: dict[WorkerHandle, Killable] = {}
        self._rows, self._bad, self._bottleneck = progress.done, progress.bad, ""
        self.done = WorkDone()

    def work(self, assignments: list[Assignment]) -> WorkDone:
        """Do all `assignments`, but for those whose part somebody else has published when their turn comes.

        Raises: InputError as the workers do, TooManyBadError, ClipbatchError where workers keep dying.
        """
        self._scheduler = ShardScheduler(assignments)
        events, say = self._events, self._progress.say
        self._engine.open(WorkerContext(run=self._run, plan=self._plan, runtime=self._runtime, events=events, say=say))
        try:
            while self._goes_on():
                signals.check()
                self._explain_the_wait()
                self._end_the_silent()
                self._answer()
                try:
                    process, message = self._events.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                process.heard = time.monotonic()
                self._handle(process, message)
        finally:
            for process in self._processes:
                process.kill()
            for search in self._searches.values():
                search.kill()
        return self.done

    def _goes_on(self) -> bool:
        """Whether there is anybody to wait for; workers that have come since are taken in."""
        self._processes += self._engine.arrivals(self._scheduler.open)
        return bool(self._processes or self._searches or (self._engine.expecting and not self._scheduler.complete))

    def _answer(self) -> None:
        """Tell the workers that ask what is next; when all is done, end those that load, or do what is done already."""
        for process in self._processes:
            if process.asks and not self._scheduler.complete:
                self._feed(process)
            if self._scheduler.complete and not process.finished and (process.asks or self._of_no_use(process)):
                process.finished = True
                process.heard = time.monotonic()
                process.send(Finish() if process.asks else Stop())

    def _of_no_use(self, process: WorkerHandle) -> bool:
        return not process.loaded or bool(self._scheduler.assigned(process))

    def _feed(self, process: WorkerHandle) -> None:
        while assignment := self._scheduler.next_for(process, time.monotonic()):
            rows = self._plan.shard_rows(assignment.shard)
            done_again = assignment.again or assignment.rows is not None
            if not done_again and self._run.part(assignment.shard, self._plan.shards).exists():
                self._scheduler.skip(process, assignment.shard)
                self._rows += len(rows)
                continue
            known = {row: reject for row, reject in self.done.quarantined.items() if row in rows}
            process.asks = False
            process.heard = time.monotonic()
            order = Assign(shard=assignment.shard, rows=assignment.rows, rejects=known, force=assignment.force)
            return process.send(order)

    def _explain_the_wait(self) -> None:
        for process in self._processes:
            if not process.loaded and not process.explained and time.monotonic() - process.begun > EXPLAIN_AFTER_S:
                process.explained = True
                self._progress.say(f"still loading the model on {process.seat}, or fetching its weights")

    def _end_the_silent(self) -> None:
        for process in self._processes:
            if process.finished:
                limit_s = LAST_WORDS_S
            else:
                limit_s = self._runtime["worker_timeout"] if process.loaded else LOADING_S
            busy = self._scheduler.assigned(process) or process.finished or not process.loaded
            if busy and not process.hung and time.monotonic() - process.heard > limit_s:
                process.hung = True
                process.kill()

    def _handle(self, process: WorkerHandle, message: Report | _Searched) -> None:
        match message:
            case Loaded():
                process.loaded = True
                self.done.load_s = max(self.done.load_s, round(time.monotonic() - process.begun, 3))
            case Ready():
                process.asks = True
            case Alive():
                pass  # that it was heard of is all that counts
            case Remark(text=text):
                self._say_once(str(process.seat), text)
            case BatchDone():
                process.rows += message.rows
                process.bad += message.bad
                self._bottleneck = message.bottleneck
                self._show()
            case PartDone():
                self._on_part(process, message)
            case WorkerReport():
                self.done.stages.append(message)
            case Failed():
                self._on_failed(process, message)
            case Ended():
                self._on_ended(process, message)
            case _Searched():
                self._on_searched(process, message)

    def _say_once(self, seat: str, text: str) -> None:
        if (seat, text) not in self._said:
            self._said.add((seat, text))
            self._progress.say(f"on {seat}: {text}")

    def _show(self) -> None:
        """Rows of finished shards and of those in work; of a shard that two workers do, the further one's."""
        going: dict[int, tuple[int, int]] = {}
        for process in self._processes:
            for shard in list(self._scheduler.assigned(process))[:1]:
                going[shard] = max(going.get(shard, (0, 0)), (process.rows, process.bad))
        bad = self._bad + sum(bad for _, bad in going.values())
        self._progress.show(self._rows + sum(rows for rows, _ in going.values()), bad, self._bottleneck)
        if self._bad_allowed is not None and bad > self._bad_allowed:
            raise TooManyBadError(too_many_bad(bad, self._bad_allowed, self._run))

    def _on_part(self, process: WorkerHandle, part: PartDone) -> None:
        if self._scheduler.done(process, part.shard, time.monotonic()):
            self.done.counts[part.shard] = part.counts
            self._rows += process.rows
            if part.kept:
                self.done.kept[part.shard] = f"{self._run.part(part.shard, self._plan.shards)}: {part.kept}"
            else:
                self._bad += process.bad
        process.rows = process.bad = 0
        self._deaths_in_a_row[process.seat] = 0

    def _on_failed(self, process: WorkerHandle, failed: Failed) -> None:
        if failed.exit_code != ClipbatchError.exit_code or not process.loaded:
            raise from_message(failed.exit_code, failed.message)
        if failed.message == self._last_error:
            raise ClipbatchError(failed.message)
        self._last_error = failed.message  # once it may be a passing one, such as of a GPU
        process.failure = failed.what

    def _on_ended(self, process: WorkerHandle, ended: Ended) -> None:
        self._processes.remove(process)
        suspects = [row for row in ended.in_flight if row not in self.done.quarantined]
        shards = list(self._scheduler.assigned(process))
        lost = self._scheduler.remove_worker(process)
        if process.finished:
            return
        cause = "as it did not answer" if process.hung else ended.cause or describe_exit(ended.code)
        cause += f": {process.failure}" if process.failure else ""
        self._deaths.update(shards)
        self._deaths_in_a_row[process.seat] += 1
        self.done.restarts += 1
        self._progress.say(f"a worker on {process.seat} ended {cause}: it is started again")
        death = _Death(
            cause=cause,
            from_outside=ended.code == -signal.SIGKILL and not process.hung,
            by_itself=ended.code < 0,
            times=max((self._deaths[shard] for shard in shards), default=0),
            suspects=suspects,
            lost=lost,
            log="\n".join(ended.log),
        )
        if suspects and (death.times >= 2 or not death.from_outside):
            self._search(process, death)
        else:
            self._restart(process, death)

    def _search(self, process: WorkerHandle, death: _Death) -> None:
        """Find out which row ended the worker; what it had in hand is not given to others before."""
        self._progress.say(f"trying the {len(death.suspects)} images that it had in hand one by one")

        def found(killers: dict[int, Reject] | ClipbatchError | None) -> None:
            self._events.put((process, _Searched(killers=killers, death=death)))

        self._searches[process] = self._engine.search(process, death.suspects, found)

    def _on_searched(self, process: WorkerHandle, searched: _Searched) -> None:
        del self._searches[process]
        killers, death = searched.killers, searched.death
        if isinstance(killers, ClipbatchError):
            raise killers
        if killers is None:
            return self._restart(process, death)
        if not killers and death.by_itself and not death.from_outside and death.times >= DEATHS_OF_A_BATCH:
            error = f"alone it can be decoded; its batch has ended {death.times} workers, the last one {death.cause}"
            killers = {row: Reject(status="crashed", error=error) for row in death.suspects}
        for row, reject in killers.items():
            self._progress.say(f"row {row} gets status {reject.status}: {reject.error}")
        self.done.quarantined |= killers
        self._restart(process, death)

    def _restart(self, process: WorkerHandle, death: _Death) -> None:
        self._scheduler.requeue(death.lost)
        if self._deaths_in_a_row[process.seat] <= MAX_DEATHS:
            if again := self._engine.again(process):
                self._processes.append(again)
            elif death.times > MAX_DEATHS:
                raise ClipbatchError(f"{death.times} workers have ended over a shard, the last one {death.cause}")
            return
        self._engine.give_up(process)
        text = f"{MAX_DEATHS} workers in a row have ended on {process.seat}, the last one {death.cause}"
        if not (self._processes or self._searches or self._engine.expecting):
            raise ClipbatchError(f"{text}:\n{death.log}")
        self._progress.say(f"{text}: it is given up, and the others go on\n{death.log}")


def too_many_bad(bad: int, allowed: int, run: RunDir) -> str:
    """What is said when `--max-bad` is exceeded."""
    return (
        f"{bad} bad images, more than --max-bad allows ({allowed}): look at status and error in {run.parts}, or raise "
        "--max-bad; finished parts stay"
    )
