"""The supervisor: assigns shards to the workers of an engine and replaces workers that die. It never opens an image.

`scheduler` decides which worker gets which shard; the engine knows where workers run. The supervisor restarts a worker
that dies or stops answering. The rows that it had started to decode and not finished are suspects: `quarantine` decodes
each of them alone, while the other workers go on. A row that kills a process again gets status crashed. However the
supervisor ends, it ends its workers first.
"""

from __future__ import annotations

import queue
import signal
import time
from collections import Counter
from collections.abc import Hashable, Set
from typing import Any

from clipbatch.config import SettingValues
from clipbatch.errors import ClipbatchError, from_message
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.types import Level, PartDone, Reject, WorkerReport
from clipbatch.workers import messages, signals
from clipbatch.workers.child import describe_exit
from clipbatch.workers.engine import Engine, Killable, WorkerContext
from clipbatch.workers.helping import Helper
from clipbatch.workers.progress import Progress
from clipbatch.workers.scheduler import Assignment, ShardScheduler
from clipbatch.workers.tally import Announcer, Limits, Tally
from clipbatch.workers.worker import Death, Searched, WorkDone, WorkerHandle

# A seat is given up when more workers than this have died on it one after the other without finishing a part.
MAX_DEATHS = 10
# After this many deaths over one shard, all suspects are given up, even if none of them kills a process alone.
DEATHS_OF_A_BATCH = 3
# If a model loads for longer than this, the user is told what the worker is doing.
EXPLAIN_AFTER_S = 15.0
# How often a rank that has nothing else left looks whether other ranks have done what its workers still do.
LOOK_S = 10.0
_POLL_S = 1.0


class Supervisor:
    """Processes assignments with the workers of `engine`."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        runtime: SettingValues,
        engine: Engine,
        progress: Progress,
        helper: Helper,
        limits: Limits,
    ) -> None:
        """runtime: `Settings.runtime` of this invocation. helper: gives shards of other ranks."""
        self._run, self._plan, self._engine, self._progress, self._helper = run, plan, engine, progress, helper
        self._runtime = runtime
        self._tally = Tally(run, progress, limits, helper.taken)
        self._events: queue.SimpleQueue[tuple[WorkerHandle, Any]] = queue.SimpleQueue()
        self._scheduler = ShardScheduler([])
        # Deaths by shard, and by seat.
        self._deaths, self._deaths_in_a_row = Counter[int](), Counter[Hashable]()
        self._last_error, self._said = "", set[str]()
        self._workers: list[WorkerHandle] = []
        self._searches: dict[WorkerHandle, Killable] = {}
        # Shards that other ranks have done while workers had them, and when we last looked for such shards.
        self._elsewhere, self._looked = set[int](), 0.0
        self.done = WorkDone()

    def work(self, assignments: list[Assignment]) -> WorkDone:
        """Process `assignments`, except shards that somebody else does before their turn, and then what `helper` gives.

        Raises: InputError if a worker raises it; TooManyBadError; ClipbatchError if workers keep dying.
        """
        if not assignments and self._helper.exhausted:
            return self.done
        self._scheduler = ShardScheduler(assignments)
        events, say = self._events, self._progress.say
        self._engine.open(WorkerContext(run=self._run, plan=self._plan, runtime=self._runtime, events=events, say=say))
        announcer = Announcer(self._run, self._plan, self._helper.rank)
        try:
            while self._workers_left():
                signals.check()
                self._progress.tick()
                self._check_silent_workers()
                self._look_elsewhere()
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

    def lacks(self, assignments: list[Assignment]) -> bool:
        """Whether a shard of `assignments` is not done."""
        return any(self._scheduler.is_open(assignment.shard) for assignment in assignments)

    @property
    def _complete(self) -> bool:
        return self._scheduler.complete and self._helper.exhausted

    def _workers_left(self) -> bool:
        """Take in workers that have started. Returns whether any worker or search is running or may still start."""
        if not self._scheduler.unassigned and (self.done.counts or not self._scheduler.in_progress):
            self._scheduler.add(self._helper.more(self.done.counts))
        self._workers += self._engine.arrivals(self._scheduler.unassigned + self._helper.available)
        return bool(self._workers or self._searches or (self._engine.expecting and not self._complete))

    def _look_elsewhere(self) -> None:
        """If other ranks have done what workers still process, count it as done, and then all else that is done."""
        if self._helper.alone or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked, at_work = time.monotonic(), self._scheduler.in_progress
        done = {shard for shard in at_work if self._run.part(shard, self._plan.shards).exists()}
        completed = self._scheduler.done_elsewhere(done)
        if any(map(self._scheduler.assigned, self._workers)) and not self._scheduler.in_progress:  # perhaps all hang
            completed = completed | self._scheduler.done_elsewhere(self._run.done(self._plan))
        self._skip(completed)

    def _skip(self, shards: Set[int]) -> None:
        """Count `shards`, which were open until other ranks did them, as done."""
        if shards:
            self._tally.skip({shard: len(self._plan.shard_rows(shard)) for shard in shards})
            self._elsewhere |= shards
            self.done.outrun = True
            self._show()

    def _send_orders(self) -> None:
        """Give a shard to each worker that asks. When all shards are done, dismiss all workers: a worker that still
        loads its model or processes a copy is no longer needed."""
        for worker in self._workers:
            if worker.asks and not self._complete:
                self._assign(worker)
            unneeded = worker.asks or not worker.loaded or self._scheduler.assigned(worker)
            if self._complete and not worker.dismissed and unneeded:
                worker.dismissed, worker.last_heard = True, time.monotonic()
                worker.send(messages.Finish() if worker.asks else messages.Stop())

    def _assign(self, worker: WorkerHandle) -> None:
        while assignment := self._scheduler.next_for(worker, time.monotonic()):
            shard, rows = assignment.shard, self._plan.shard_rows(assignment.shard)
            if not assignment.redo and self._run.part(shard, self._plan.shards).exists():
                self._skip(self._scheduler.done_elsewhere({shard}))
                self._scheduler.skip(worker, shard)
                continue
            if shard in self._helper.taken:
                self._tally.extend(shard, len(rows))
                self._say_once("all parts of this rank are done or in progress: it helps the other ranks")
            rejects = {row: reject for row, reject in self.done.quarantined.items() if row in rows}
            worker.asks, worker.last_heard = False, time.monotonic()
            order = messages.Assign(shard=shard, rows=assignment.rows, rejects=rejects, force=assignment.force)
            return worker.send(order)

    def _check_silent_workers(self) -> None:
        """Explain long loading to the user, and kill workers that have not been heard of for too long."""
        for worker in self._workers:
            if not worker.loaded and not worker.explained and time.monotonic() - worker.started > EXPLAIN_AFTER_S:
                worker.explained = True
                self._progress.say(f"still loading the model on {worker.seat}, or fetching its weights")
            busy = bool(self._scheduler.assigned(worker))
            if not worker.hung and worker.overdue(busy, self._runtime["worker_timeout"]):
                worker.hung = True
                worker.kill()

    def _handle(self, worker: WorkerHandle, message: messages.Report | Searched) -> None:
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
                self._say_once(f"on {worker.seat}: {text}", level)
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
            case Searched():
                self._on_searched(worker, message)

    def _say_once(self, text: str, level: Level = "info") -> None:
        if text not in self._said:
            self._said.add(text)
            self._progress.say(text, level)

    def _show(self) -> None:
        """Show how many rows are done. Of a shard that two workers process, the one that is further counts."""
        in_progress: dict[int, tuple[int, int]] = {}
        for worker in self._workers:
            for shard in filter(self._scheduler.is_open, list(self._scheduler.assigned(worker))[:1]):
                in_progress[shard] = max(in_progress.get(shard, (0, 0)), (worker.rows, worker.bad))
        self._tally.show(in_progress)

    def _on_part(self, worker: WorkerHandle, part: PartDone) -> None:
        first = self._scheduler.done(worker, part.shard, time.monotonic())
        if first or part.shard in self._elsewhere:  # if both did it at the same time, both count it
            self._elsewhere.discard(part.shard)
            self.done.counts[part.shard] = part.counts
            self._progress.part_done(part.counts)
            self._tally.finish(worker, part.shard, kept=part.kept is not None)
            if part.kept:
                self.done.kept[part.shard] = f"{self._run.part(part.shard, self._plan.shards)}: {part.kept}"
            self.done.outrun = False
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
        shards, lost = list(self._scheduler.assigned(worker)), self._scheduler.remove_worker(worker)
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
        death = Death(
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

    def _search(self, worker: WorkerHandle, death: Death) -> None:
        """Find out which row killed the worker. Until then, no other worker gets its shards."""
        self._progress.say(f"decoding one by one the {len(death.suspects)} images that it was processing")
        self._searches[worker] = self._engine.search(
            worker, death.suspects, lambda killers: self._events.put((worker, Searched(killers=killers, death=death)))
        )

    def _on_searched(self, worker: WorkerHandle, searched: Searched) -> None:
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

    def _restart(self, worker: WorkerHandle, death: Death) -> None:
        self._scheduler.requeue(death.lost)
        if self._deaths_in_a_row[worker.seat] <= MAX_DEATHS:
            if new_worker := self._engine.again(worker):
                return self._workers.append(new_worker)
            if death.times > MAX_DEATHS:
                raise ClipbatchError(f"{death.times} workers have died over one part, the last one {death.cause}")
            return
        self._engine.give_up(worker)
        text = f"{MAX_DEATHS} workers in a row have died on {worker.seat}, the last one {death.cause}"
        if not (self._workers or self._searches or self._engine.expecting):
            raise ClipbatchError(f"{text}:\n{death.log}")
        self._progress.say(f"{text}: no more are started on it, and the others go on\n{death.log}", "warning")
