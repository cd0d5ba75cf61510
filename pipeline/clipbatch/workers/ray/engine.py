"""Workers on a Ray cluster: an actor for each, which asks for a GPU, or on a cluster without GPUs for cores.

What the cluster has no room for waits, which is how one that scales by itself is asked for nodes. A node that joins
gets its workers in the middle of the run, and one that goes takes with it what its workers had in hand, no more. Ray
carries messages alone: images, scores and parts never pass through it.

Workers on a Ray cluster as their supervisor sees them, and the actors that keep them.
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
from clipbatch.config import Settings
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.rundir.manifest import Manifest
from clipbatch.storage.uris import absolute, is_url
from clipbatch.types import Reject, WorkerReport
from clipbatch.workers.engine import WorkerContext
from clipbatch.workers.messages import Ended, Failed, Order, Report
from clipbatch.workers.quarantine import Found
from clipbatch.workers.ray.actor import RayActor
from clipbatch.workers.ray.cluster import RayCluster
from clipbatch.workers.worker import WorkerHandle

Answer = tuple["RayWorker", "Future[list[Report]]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySeat:
    """Where a worker is, whichever actor keeps it."""

    # Ray's number of it.
    node: str
    address: str
    # Which of the `slots` equal pieces of the node's cores is its own.
    slot: int
    slots: int
    gpu: int | str | None

    def __str__(self) -> str:
        return f"node {self.address}" + ("" if self.gpu is None else f", GPU {self.gpu}")


class Slot:
    """An actor, which may still wait for a node to run on; it keeps one worker after another."""

    def __init__(self, actor: Any, look: Future[dict[str, Any]]) -> None:
        """look: what `RayActor.look` will say once it runs."""
        self.actor, self.look = actor, look
        # Where it runs; None as long as it waits.
        self.seat: RaySeat | None = None
        # It does not answer any more, nor does its node perhaps.
        self.gone = False

    def start(self, seat: RaySeat, put: Callable[[Answer], None]) -> RayWorker:
        """Start a worker here; put: takes each answer of its actor."""
        self.seat = seat
        return RayWorker(self, seat, put)


class RayWorker(WorkerHandle):
    """The worker process that the actor `place` keeps."""

    seat: RaySeat

    def __init__(self, place: Slot, seat: RaySeat, put: Callable[[Answer], None]) -> None:
        super().__init__(seat)
        self.place, self._put = place, put
        self._expect(place.actor.start.remote(seat.slot, seat.slots))

    def send(self, order: Order) -> None:
        self.place.actor.send.remote(order)

    def kill(self) -> None:
        self.place.actor.kill.remote()

    def listen(self) -> None:
        """Ask for what it has to report."""
        self._expect(self.place.actor.events.remote())

    def _expect(self, answer: Any) -> None:
        answer.future().add_done_callback(lambda future: self._put((self, future)))

    def reported(self, answer: Future[list[Report]]) -> list[Report]:
        """What it reported, with its place; that it has ended where its actor does not answer any more."""
        from ray.exceptions import RayActorError

        if (error := answer.exception()) is not None:
            cause = f"with its actor or its node ({last_line(error)})"
            messages: list[Report] = [Ended(code=-signal.SIGKILL, cause=cause)]
            if not isinstance(error, RayActorError):  # the actor lives, and could not do what it was asked
                messages.insert(0, Failed(exit_code=ClipbatchError.exit_code, message=str(error)))
            self.place.gone = True
        else:
            messages = answer.result()
        return [self._placed(message) for message in messages]

    def _placed(self, message: Report) -> Report:
        """`message`, with where it comes from."""
        if isinstance(message, Failed):
            return replace(message, message=f"{self.seat}: {message.message}")
        if isinstance(message, WorkerReport):
            return replace(message, facts={**message.facts, "node": self.seat.address})
        return message


def last_line(error: BaseException) -> str:
    """The end of an error's text, which Ray begins with a trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


# How often the cluster is asked which nodes it has.
LOOK_EVERY_S = 5.0
_EXPLAIN_AFTER_S = 15.0
# Within which actors have ended their workers.
_LAST_WORDS_S = 10.0
# Calls that an actor takes at the same time: one waits for events, one may search, others are short.
_THREADS = 8


class RayEngine:
    """Raises: InputError as `RayCluster` does."""

    def __init__(self, settings: Settings) -> None:
        self._cluster = RayCluster(settings)
        self.device = "cuda" if self._cluster.gpus else "cpu"
        self._asked, self._given_up = settings.launch.workers, 0
        self._room, self._looked = self._cluster.room(), time.monotonic()
        self._since, self._explained = time.monotonic(), False
        self._places: list[Slot] = []
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()

    @property
    def expecting(self) -> bool:
        return self._most() > 0

    def open(self, job: WorkerContext) -> None:
        path, device = absolute(str(job.run.path)), "cuda:0" if self._cluster.gpus else "cpu"
        self._job, self._arguments = job, (path, job.plan.fingerprint, job.runtime, device)
        self._sample = _sample(job)
        self._actor = self._cluster.ray.remote(
            num_cpus=self._cluster.cores,
            num_gpus=int(self._cluster.gpus),
            max_concurrency=_THREADS,
            scheduling_strategy="SPREAD",
        )(RayActor)
        threading.Thread(target=self._forward, name="ray", daemon=True).start()

    def arrivals(self, open_shards: int) -> list[WorkerHandle]:
        """Raises: InputError where a node cannot work, as it does not see the run directory or the input."""
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self._room, self._looked = self._cluster.room(), time.monotonic()
        waiting = [place for place in self._places if place.seat is None]
        wanted = min(self._most(), len(self._places) - len(waiting) + open_shards)
        for place in waiting[: max(0, len(self._places) - wanted)]:
            self._drop(place)
        while len(self._places) < wanted:
            self._ask()
        self._explain_the_wait()
        return [worker for place in list(self._places) for worker in self._welcome(place)]

    def again(self, worker: WorkerHandle) -> WorkerHandle | None:
        place = _place(worker)
        if place.seat and not place.gone:
            return place.start(place.seat, self._answers.put)
        self._drop(place)
        return None

    def give_up(self, worker: WorkerHandle) -> None:
        self._given_up += 1
        self._drop(_place(worker))

    def search(self, worker: WorkerHandle, rows: list[int], found: Found) -> _Search:
        place = _place(worker)

        def answered(future: Future[dict[int, Reject] | str]) -> None:
            if future.exception() is not None:
                place.gone = True
                return found(None)
            answer = future.result()
            found(ClipbatchError(f"{worker.seat}: {answer}") if isinstance(answer, str) else answer)

        place.actor.search.remote(rows).future().add_done_callback(answered)
        return _Search()

    def close(self) -> None:
        """End all workers and actors; and the cluster, where it was started here."""
        ends = [place.actor.end.remote() for place in self._places if place.seat and not place.gone]
        if ends:
            self._cluster.ray.wait(ends, num_returns=len(ends), timeout=_LAST_WORDS_S)
        for place in list(self._places):
            self._drop(place)
        self._answers.put(None)
        self._cluster.close()

    def _most(self) -> int:
        """How many workers the cluster is asked for; also where all of its nodes are gone, one."""
        return (self._asked or max(1, self._room)) - self._given_up

    def _ask(self) -> None:
        actor = self._actor.remote(*self._arguments)
        self._places.append(Slot(actor, actor.look.remote(clipbatch.__version__, self._sample).future()))

    def _drop(self, place: Slot) -> None:
        self._places.remove(place)
        self._cluster.ray.kill(place.actor)

    def _welcome(self, place: Slot) -> Iterator[WorkerHandle]:
        """Start the worker of an actor that has just got its place."""
        if place.seat or not place.look.done():
            return
        error = place.look.exception()
        if error is not None:
            if isinstance(error, self._cluster.ray.exceptions.RayActorError) and "creation task" not in str(error):
                return self._drop(place)  # its node has gone before it could work
            raise InputError(
                "a node of the Ray cluster cannot start clipbatch: install the same version there, or have ray job "
                f"submit install it (--runtime-env); the node says: {last_line(error)}"
            )
        found = place.look.result()
        if "refused" in found:
            raise InputError(found["refused"])
        slots = max(1, self._cluster.slots(self._cluster.nodes().get(found["node"], {})))
        taken = {other.seat.slot for other in self._places if other.seat and other.seat.node == found["node"]}
        free = [slot for slot in (found["gpu"], *range(slots)) if slot in range(slots) and slot not in taken]
        seat = RaySeat(**found, slot=free[0] if free else 0, slots=slots)
        yield place.start(seat, self._answers.put)

    def _explain_the_wait(self) -> None:
        if not self._places or any(place.seat for place in self._places):
            self._since, self._explained = time.monotonic(), False
        elif not self._explained and time.monotonic() - self._since > _EXPLAIN_AFTER_S:
            self._explained = True
            self._job.say(
                f"waiting for the Ray cluster to start {len(self._places)} workers, of {self._cluster.wants} each; "
                "ray status says what it has"
            )

    def _forward(self) -> None:
        """Pass on to the supervisor what workers report."""
        while answer := self._answers.get():
            worker, future = answer
            messages = worker.reported(future)
            for message in messages:
                self._job.events.put((worker, message))
            if not (messages and isinstance(messages[-1], Ended)):
                worker.listen()


class _Search:
    """A search on a node, which ends with its actor."""

    def kill(self) -> None:
        pass


def _place(worker: WorkerHandle) -> Slot:
    assert isinstance(worker, RayWorker)
    return worker.place


def _sample(job: WorkerContext) -> str | None:
    """A file or folder of the input that this machine sees, and workers have to see too; None where there is none."""
    path = job.plan.rescored
    if path is None:
        manifest = Manifest(job.run, job.plan)
        (item,) = manifest.items(manifest.rows(0).slice(0, 1))
        path = item.path
    return path if path and not is_url(path) and os.path.exists(path) else None
