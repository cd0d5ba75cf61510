"""The engine for a Ray cluster: one actor for each worker, which requests a GPU or, on a cluster without GPUs, cores.

Actors for which the cluster has no room wait; that is how a cluster that scales by itself is asked for more nodes. A
node that joins gets workers in the middle of the run. When a node leaves, only the work that its workers had in
progress is lost. Ray carries only messages: images, scores and parts never pass through it.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import clipbatch
from clipbatch.config import Settings, models
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.rundir.manifest import Manifest
from clipbatch.storage.uris import absolute, is_url
from clipbatch.types import Reject, WorkerReport
from clipbatch.workers.engine import WorkerContext
from clipbatch.workers.messages import Ended, Failed, Order, Report
from clipbatch.workers.quarantine import OnResult
from clipbatch.workers.ray.actor import RayActor
from clipbatch.workers.ray.cluster import RayCluster
from clipbatch.workers.worker import WorkerHandle

Answer = tuple["RayWorker", "Future[list[Report]]"]

# How often the cluster is asked which nodes it has.
LOOK_EVERY_S = 5.0
# After this time without a node, the user is told what the run waits for.
_EXPLAIN_AFTER_S = 15.0
# How long actors may take to end their workers.
_EXIT_TIMEOUT_S = 10.0
# How many calls an actor takes at the same time: one waits for events, one may search, the others are short.
_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySeat:
    """Where a worker runs; it does not change when another actor takes the place of this one."""

    # Ray's node ID.
    node: str
    address: str
    # Which of the `slots` equal pieces of the node's cores the worker uses.
    slot: int
    slots: int
    gpu: int | str | None

    def __str__(self) -> str:
        return f"node {self.address}" + ("" if self.gpu is None else f", GPU {self.gpu}")


class Slot:
    """An actor, which may still be waiting for a node. It keeps one worker process after another."""

    def __init__(self, actor: Any, look: Future[dict[str, Any]]) -> None:
        """look: the result of `RayActor.look`, available once the actor runs."""
        self.actor, self.look = actor, look
        # Where the actor runs; None while it waits for a node.
        self.seat: RaySeat | None = None
        # The actor does not answer any more; perhaps its node is gone too.
        self.gone = False

    def start(self, seat: RaySeat, on_answer: Callable[[Answer], None]) -> RayWorker:
        """Start a worker on `seat`. on_answer: called with each answer of the actor."""
        self.seat = seat
        return RayWorker(self, seat, on_answer)


class RayWorker(WorkerHandle):
    """The worker process that the actor of `slot` keeps."""

    seat: RaySeat

    def __init__(self, slot: Slot, seat: RaySeat, on_answer: Callable[[Answer], None]) -> None:
        super().__init__(seat)
        self.slot, self._on_answer = slot, on_answer
        self._expect(slot.actor.start.remote(seat.slot, seat.slots))

    def send(self, order: Order) -> None:
        self.slot.actor.send.remote(order)

    def kill(self) -> None:
        self.slot.actor.kill.remote()

    def listen(self) -> None:
        """Ask the actor for the worker's next reports."""
        self._expect(self.slot.actor.events.remote())

    def _expect(self, answer: Any) -> None:
        answer.future().add_done_callback(lambda future: self._on_answer((self, future)))

    def reported(self, answer: Future[list[Report]]) -> list[Report]:
        """The reports in `answer`, with the node in them. If the actor does not answer any more, that the worker has
        ended."""
        from ray.exceptions import RayActorError

        if (error := answer.exception()) is not None:
            cause = f"with its actor or its node ({last_line(error)})"
            messages: list[Report] = [Ended(code=-signal.SIGKILL, cause=cause)]
            if not isinstance(error, RayActorError):  # the actor is alive, but its method has failed
                messages.insert(0, Failed(exit_code=ClipbatchError.exit_code, message=str(error)))
            self.slot.gone = True
        else:
            messages = answer.result()
        return [self._with_node(message) for message in messages]

    def _with_node(self, message: Report) -> Report:
        """`message`, with the node that it comes from."""
        if isinstance(message, Failed):
            return replace(message, message=f"{self.seat}: {message.message}")
        if isinstance(message, WorkerReport):
            return replace(message, facts={**message.facts, "node": self.seat.address})
        return message


def last_line(error: BaseException) -> str:
    """The last line of an error's text. Ray puts a traceback before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


class RayEngine:
    """Workers on a Ray cluster. Raises: InputError as `RayCluster` does."""

    def __init__(self, settings: Settings) -> None:
        self._cluster = RayCluster(settings)
        self.device = "cuda" if self._cluster.gpus else "cpu"
        self._requested, self._given_up = settings.launch.workers, 0
        self._room, self._last_look = self._cluster.room(), time.monotonic()
        self._waiting_since, self._explained = time.monotonic(), False
        self._slots: list[Slot] = []
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()

    @property
    def expecting(self) -> bool:
        return self._max_workers() > 0

    def open(self, context: WorkerContext) -> None:
        path, device = absolute(str(context.run.path)), "cuda:0" if self._cluster.gpus else "cpu"
        self._context, self._arguments = context, (path, context.plan.fingerprint, context.runtime, device)
        self._sample = _sample(context)
        if context.plan.rescored is None:
            self._cluster.share_gpus(models.gflop(context.plan.settings["model"]))
            self._room = self._cluster.room()
        self._actor = self._cluster.ray.remote(
            num_cpus=self._cluster.cores,
            num_gpus=1 / self._cluster.workers_per_gpu if self._cluster.gpus else 0,
            max_concurrency=_THREADS,
            scheduling_strategy="SPREAD",
        )(RayActor)
        threading.Thread(target=self._forward, name="ray", daemon=True).start()

    def arrivals(self, open_shards: int) -> list[WorkerHandle]:
        """Raises: InputError if a node cannot work, for example because it does not see the run directory or input."""
        if time.monotonic() - self._last_look > LOOK_EVERY_S:
            self._room, self._last_look = self._cluster.room(), time.monotonic()
        waiting = [slot for slot in self._slots if slot.seat is None]
        wanted = min(self._max_workers(), len(self._slots) - len(waiting) + open_shards)
        for slot in waiting[: max(0, len(self._slots) - wanted)]:
            self._drop(slot)
        while len(self._slots) < wanted:
            self._request_actor()
        self._explain_the_wait()
        return [worker for slot in list(self._slots) for worker in self._start_on_arrival(slot)]

    def again(self, worker: WorkerHandle) -> WorkerHandle | None:
        slot = _slot(worker)
        if slot.seat and not slot.gone:
            return slot.start(slot.seat, self._answers.put)
        self._drop(slot)
        return None

    def give_up(self, worker: WorkerHandle) -> None:
        self._given_up += 1
        self._drop(_slot(worker))

    def search(self, worker: WorkerHandle, rows: list[int], on_result: OnResult) -> _Search:
        slot = _slot(worker)

        def on_answer(future: Future[dict[int, Reject] | str]) -> None:
            if future.exception() is not None:
                slot.gone = True
                return on_result(None)
            answer = future.result()
            on_result(ClipbatchError(f"{worker.seat}: {answer}") if isinstance(answer, str) else answer)

        slot.actor.search.remote(rows).future().add_done_callback(on_answer)
        return _Search()

    def close(self) -> None:
        """End all workers and actors, and the cluster if it was started by this process."""
        ends = [slot.actor.end.remote() for slot in self._slots if slot.seat and not slot.gone]
        if ends:
            self._cluster.ray.wait(ends, num_returns=len(ends), timeout=_EXIT_TIMEOUT_S)
        for slot in list(self._slots):
            self._drop(slot)
        self._answers.put(None)
        self._cluster.close()

    def _max_workers(self) -> int:
        """How many workers to request from the cluster: at least one, even if all of its nodes are gone, unless seats
        were given up."""
        return (self._requested or max(1, self._room)) - self._given_up

    def _request_actor(self) -> None:
        actor = self._actor.remote(*self._arguments)
        self._slots.append(Slot(actor, actor.look.remote(clipbatch.__version__, self._sample).future()))

    def _drop(self, slot: Slot) -> None:
        self._slots.remove(slot)
        self._cluster.ray.kill(slot.actor)

    def _start_on_arrival(self, slot: Slot) -> Iterator[WorkerHandle]:
        """Start the worker of an actor that has just got a node."""
        if slot.seat or not slot.look.done():
            return
        error = slot.look.exception()
        if error is not None:
            if isinstance(error, self._cluster.ray.exceptions.RayActorError) and "creation task" not in str(error):
                return self._drop(slot)  # its node left before the actor could work
            raise InputError(
                "a node of the Ray cluster cannot start clipbatch: install the same version there, or have ray job "
                f"submit install it (--runtime-env); the node says: {last_line(error)}"
            )
        facts = slot.look.result()
        if "refused" in facts:
            raise InputError(facts["refused"])
        slots = max(1, self._cluster.slots(self._cluster.nodes().get(facts["node"], {})))
        taken = {other.seat.slot for other in self._slots if other.seat and other.seat.node == facts["node"]}
        free = [number for number in (facts["gpu"], *range(slots)) if number in range(slots) and number not in taken]
        seat = RaySeat(**facts, slot=free[0] if free else 0, slots=slots)
        yield slot.start(seat, self._answers.put)

    def _explain_the_wait(self) -> None:
        if not self._slots or any(slot.seat for slot in self._slots):
            self._waiting_since, self._explained = time.monotonic(), False
        elif not self._explained and time.monotonic() - self._waiting_since > _EXPLAIN_AFTER_S:
            self._explained = True
            self._context.say(
                f"waiting for the Ray cluster to start {len(self._slots)} workers, each with {self._cluster.wants}; "
                "`ray status` shows what the cluster has"
            )

    def _forward(self) -> None:
        """Pass the workers' reports on to the supervisor."""
        while answer := self._answers.get():
            worker, future = answer
            messages = worker.reported(future)
            for message in messages:
                self._context.events.put((worker, message))
            if not (messages and isinstance(messages[-1], Ended)):
                worker.listen()


class _Search:
    """A search on a node. It ends with its actor, so there is nothing to kill."""

    def kill(self) -> None:
        pass


def _slot(worker: WorkerHandle) -> Slot:
    assert isinstance(worker, RayWorker)
    return worker.slot


def _sample(context: WorkerContext) -> str | None:
    """A file or folder of the input that exists here, so must exist on the nodes too. None: there is none."""
    path = context.plan.rescored
    if path is None:
        manifest = Manifest(context.run, context.plan)
        (item,) = manifest.items(manifest.rows(0).slice(0, 1))
        path = item.path
    return path if path and not is_url(path) and os.path.exists(path) else None
