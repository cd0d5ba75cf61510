"""The supervisor: assigns shards to the workers of an engine and replaces workers that die. It never opens an image.

`scheduler` decides which worker gets which shard; the engine knows where workers run. The supervisor restarts a worker
that dies or stops answering. The rows that it had started to decode and not finished are suspects: `quarantine` decodes
each of them alone, while the other workers go on. A row that kills a process again gets status crashed. However the
supervisor ends, it ends its workers first.
"""

from __future__ import annotations

import collections
import queue
import signal
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from clipbatch.config import SettingValues
from clipbatch.errors import ClipbatchError, from_message
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.types import Level, PartDone, Reject, WorkerReport
from clipbatch.workers import messages, signals
from clipbatch.workers.child import describe_exit
from clipbatch.workers.engine import Engine, Killable, WorkerContext
from clipbatch.workers.progress import Progress
from clipbatch.workers.ranks import Rank
from clipbatch.workers.scheduler import Assignment, ShardScheduler
from clipbatch.workers.tally import Announcer, Limits, Tally
from clipbatch.workers.worker import WorkDone, WorkerHandle

# A seat is given up when more workers than this have died on it one after the other without finishing a part.
MAX_DEATHS = 10
# After this many deaths over one shard, all suspects are given up, even if none of them kills a process alone.
DEATHS_OF_A_BATCH = 3
# If a model loads for longer than this, the user is told what the worker is doing.
EXPLAIN_AFTER_S = 15.0
# How long a worker may take to load its model, including a download of the weights over a slow line.
LOADING_S = 3600.0
# How long a worker may take to report and exit after a Finish or Stop.
EXIT_TIMEOUT_S = 10.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
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
class _Searched:
    """A search for the rows that killed a worker has ended."""

    # What each killing row did; an error if the search failed; None if it was cut off.
    killers: dict[int, Reject] | ClipbatchError | None
    death: _Death


class Supervisor:
    """Processes assignments with the workers of `engine`."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        runtime: SettingValues,
        engine: Engine,
        progress: Progress,
        rank: Rank,
        limits: Limits,
    ) -> None:
        """runtime: the settings of this invocation, `Settings.runtime`."""
        self._run, self._plan, self._engine, self._progress = run, plan, engine, progress
        self._runtime, self._rank = runtime, rank
        self._tally = Tally(run, progress, limits)
        self._events: queue.SimpleQueue[tuple[WorkerHandle, Any]] = queue.SimpleQueue()
        self._scheduler = ShardScheduler([])
        # Deaths by shard, and by seat.
        self._deaths: collections.Counter[int] = collections.Counter()
        self._deaths_in_a_row: collections.Counter[Hashable] = collections.Counter()
        self._last_error = ""
        self._said: set[tuple[str, str]] = set()
        self._workers: list[WorkerHandle] = []
        self._searches: dict[WorkerHandle, Killable] = {}
        self.done = WorkDone()

    def work(self, assignments: list[Assignment]) -> WorkDone:
        """Process all `assignments`, except shards that get a part from somebody else before their turn.

        Raises: InputError if a worker raises it; TooManyBadError; ClipbatchError if workers keep dying.
        """
        if not assignments:
            return self.done
        self._scheduler = ShardScheduler(assignments)
        events, say = self._events, self._progress.say
        self._engine.open(WorkerContext(run=self._run, plan=self._plan, runtime=self._runtime, events=events, say=say))
        announcer = Announcer(self._run, self._plan, self._rank)
        try:
            while self._workers_left():
                signals.check()
                self._progress.tick()
                self._check_silent_workers()
                self._send_orders()
                if announcer.is_due():
                    announcer.say(self._tally, {str(worker.seat) for worker in self._workers}, self._deaths)
                try:
                    worker, message = self._events.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                worker.last_heard = time.monotonic()
                self._handle(worker, message)
        finally:
            for running in (*self._workers, *self._searches.values()):
                running.kill()
            announcer.close()
        return self.done

    def _workers_left(self) -> bool:
        """Take in workers that have started. Returns whether any worker or search is running or may still start."""
        self._workers += self._engine.arrivals(self._scheduler.open)
        return bool(self._workers or self._searches or (self._engine.expecting and not self._scheduler.complete))

    def _send_orders(self) -> None:
        """Give a shard to each worker that asks. When all shards are done, dismiss all workers: a worker that still
        loads its model or processes a copy is no longer needed."""
        for worker in self._workers:
            if worker.asks and not self._scheduler.complete:
                self._assign(worker)
            unneeded = worker.asks or not worker.loaded or self._scheduler.assigned(worker)
            if self._scheduler.complete and not worker.dismissed and unneeded:
                worker.dismissed = True
                worker.last_heard = time.monotonic()
                worker.send(messages.Finish() if worker.asks else messages.Stop())

    def _assign(self, worker: WorkerHandle) -> None:
        while assignment := self._scheduler.next_for(worker, time.monotonic()):
            rows = self._plan.shard_rows(assignment.shard)
            redo = assignment.again or assignment.rows is not None
            if not redo and self._run.part(assignment.shard, self._plan.shards).exists():
                self._scheduler.skip(worker, assignment.shard)
                self._tally.skip(len(rows))
                continue
            rejects = {row: reject for row, reject in self.done.quarantined.items() if row in rows}
            worker.asks = False
            worker.last_heard = time.monotonic()
            shard, force = assignment.shard, assignment.force
            return worker.send(messages.Assign(shard=shard, rows=assignment.rows, rejects=rejects, force=force))

    def _check_silent_workers(self) -> None:
        """Explain long loading to the user, and kill workers that have not been heard of for too long."""
        for worker in self._workers:
            if not worker.loaded and not worker.explained and time.monotonic() - worker.started > EXPLAIN_AFTER_S:
                worker.explained = True
                self._progress.say(f"still loading the model on {worker.seat}, or fetching its weights")
            if worker.dismissed:
                limit_s = EXIT_TIMEOUT_S
            else:
                limit_s = self._runtime["worker_timeout"] if worker.loaded else LOADING_S
            busy = self._scheduler.assigned(worker) or worker.dismissed or not worker.loaded
            if busy and not worker.hung and time.monotonic() - worker.last_heard > limit_s:
                worker.hung = True
                worker.kill()

    def _handle(self, worker: WorkerHandle, message: messages.Report | _Searched) -> None:
        match message:
            case messages.Loaded():
                worker.loaded = True
                self._progress.loaded()
                self.done.load_s = max(self.done.load_s, round(time.monotonic() - worker.started, 3))
            case messages.Ready():
                worker.asks = True
            case messages.Alive():
                pass  # `work` has noted the time, which is all that this message is for
            case messages.Remark(text=text, level=level):
                self._say_once(str(worker.seat), text, level)
            case messages.BatchDone():
                self._tally.add(worker, message)
                self._show()
            case PartDone():
                self._on_part(worker, message)
            case WorkerReport():
                self.done.stages.append(message)
            case messages.Failed():
                self._on_failed(worker, message)
            case messages.Ended():
                self._on_ended(worker, message)
            case _Searched():
                self._on_searched(worker, message)

    def _say_once(self, seat: str, text: str, level: Level) -> None:
        if (seat, text) not in self._said:
            self._said.add((seat, text))
            self._progress.say(f"on {seat}: {text}", level)

    def _show(self) -> None:
        """Show how many rows are done. Of a shard that two workers process, the one that is further counts."""
        in_progress: dict[int, tuple[int, int]] = {}
        for worker in self._workers:
            for shard in list(self._scheduler.assigned(worker))[:1]:
                in_progress[shard] = max(in_progress.get(shard, (0, 0)), (worker.rows, worker.bad))
        self._tally.show(in_progress)

    def _on_part(self, worker: WorkerHandle, part: PartDone) -> None:
        if self._scheduler.done(worker, part.shard, time.monotonic()):
            self.done.counts[part.shard] = part.counts
            self._progress.part_done(part.counts)
            self._tally.finish(worker, kept=part.kept is not None)
            if part.kept:
                self.done.kept[part.shard] = f"{self._run.part(part.shard, self._plan.shards)}: {part.kept}"
        worker.rows = worker.bad = 0
        self._deaths_in_a_row[worker.seat] = 0

    def _on_failed(self, worker: WorkerHandle, failed: messages.Failed) -> None:
        """Raises: the worker's error, unless it may be temporary, as one of a GPU; one that occurs twice is not."""
        worker.failure = failed
        if failed.fault == "unfit" and (self._engine.expecting or not all(w.failed_by("unfit") for w in self._workers)):
            return self._progress.say(f"{worker.seat} is given up, and the others go on: {failed.message}", "warning")
        if failed.exit_code != ClipbatchError.exit_code or not worker.loaded:
            raise from_message(failed.exit_code, failed.message)
        if failed.message == self._last_error and failed.fault == "error":
            raise ClipbatchError(failed.message)
        self._last_error = failed.message

    def _on_ended(self, worker: WorkerHandle, ended: messages.Ended) -> None:
        self._workers.remove(worker)
        suspects = [row for row in ended.in_flight if row not in self.done.quarantined]
        shards = list(self._scheduler.assigned(worker))
        lost = self._scheduler.remove_worker(worker)
        if worker.failed_by("unfit"):
            return self._engine.give_up(worker)
        if worker.dismissed:
            return
        cause = "as it did not answer" if worker.hung else ended.cause or describe_exit(ended.code)
        cause += f": {worker.failure.what}" if worker.failure else ""
        self._deaths.update(shards)
        self._deaths_in_a_row[worker.seat] += 1
        self.done.restarts += 1
        self._progress.worker_ended()
        self._progress.say(f"a worker on {worker.seat} ended {cause}; restarting it", "warning")
        death = _Death(
            cause=cause,
            from_outside=ended.code == -signal.SIGKILL and not worker.hung,
            by_itself=ended.code < 0 or worker.failed_by("device"),
            times=max((self._deaths[shard] for shard in shards), default=0),
            suspects=suspects,
            lost=lost,
            log="\n".join(ended.log),
        )
        if suspects and (death.times >= 2 or not death.from_outside):
            self._search(worker, death)
        else:
            self._restart(worker, death)

    def _search(self, worker: WorkerHandle, death: _Death) -> None:
        """Find out which row killed the worker. Until then, no other worker gets its shards."""
        self._progress.say(f"decoding one by one the {len(death.suspects)} images that it was processing")
        self._searches[worker] = self._engine.search(
            worker, death.suspects, lambda killers: self._events.put((worker, _Searched(killers=killers, death=death)))
        )

    def _on_searched(self, worker: WorkerHandle, searched: _Searched) -> None:
        del self._searches[worker]
        killers, death = searched.killers, searched.death
        if isinstance(killers, ClipbatchError):
            raise killers
        if killers is None:
            return self._restart(worker, death)
        if not killers and death.by_itself and not death.from_outside and death.times >= DEATHS_OF_A_BATCH:
            error = f"alone it can be decoded; its batch has ended {death.times} workers, the last one {death.cause}"
            killers = {row: Reject(status="crashed", error=error) for row in death.suspects}
        for row, reject in killers.items():
            self._progress.say(f"row {row} gets status {reject.status}: {reject.error}", "warning")
        self.done.quarantined |= killers
        self._restart(worker, death)

    def _restart(self, worker: WorkerHandle, death: _Death) -> None:
        self._scheduler.requeue(death.lost)
        if self._deaths_in_a_row[worker.seat] <= MAX_DEATHS:
            if new_worker := self._engine.again(worker):
                self._workers.append(new_worker)
            elif death.times > MAX_DEATHS:
                raise ClipbatchError(f"{death.times} workers have died over one part, the last one {death.cause}")
            return
        self._engine.give_up(worker)
        text = f"{MAX_DEATHS} workers in a row have died on {worker.seat}, the last one {death.cause}"
        if not (self._workers or self._searches or self._engine.expecting):
            raise ClipbatchError(f"{text}:\n{death.log}")
        self._progress.say(f"{text}: no more are started on it, and the others go on\n{death.log}", "warning")
