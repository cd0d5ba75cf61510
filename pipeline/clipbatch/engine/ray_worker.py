"""Workers on a Ray cluster as their supervisor sees them, and the actors that keep them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from clipbatch.errors import ClipbatchError
from clipbatch.process import Worker
from clipbatch.types import Reject

Answer = tuple["RayWorker", "Future[list[dict[str, Any]]]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySeat:
    """Where a worker is, whichever actor keeps it."""

    node: str
    """Ray's number of it."""
    address: str
    slot: int
    """Which of the `slots` equal pieces of the node's cores is its own."""
    slots: int
    gpu: int | str | None

    def __str__(self) -> str:
        return f"node {self.address}" + ("" if self.gpu is None else f", GPU {self.gpu}")


class Place:
    """An actor, which may still wait for a node to run on; it keeps one worker after another."""

    def __init__(self, actor: Any, look: Future[dict[str, Any]]) -> None:
        """look: what `RayActor.look` will say once it runs."""
        self.actor, self.look = actor, look
        self.seat: RaySeat | None = None
        """Where it runs; None as long as it waits."""
        self.gone = False
        """It does not answer any more, nor does its node perhaps."""

    def start(self, seat: RaySeat, put: Callable[[Answer], None]) -> RayWorker:
        """Start a worker here; put: takes each answer of its actor."""
        self.seat = seat
        return RayWorker(self, seat, put)


class RayWorker(Worker):
    """The worker process that the actor `place` keeps."""

    seat: RaySeat

    def __init__(self, place: Place, seat: RaySeat, put: Callable[[Answer], None]) -> None:
        super().__init__(seat)
        self.place, self._put = place, put
        self._expect(place.actor.start.remote(seat.slot, seat.slots))

    def send(self, message: dict[str, Any], rejects: Mapping[int, Reject] | None = None) -> None:
        self.place.actor.send.remote(message, rejects)

    def kill(self) -> None:
        self.place.actor.kill.remote()

    def listen(self) -> None:
        """Ask for what it has to report."""
        self._expect(self.place.actor.events.remote())

    def _expect(self, answer: Any) -> None:
        answer.future().add_done_callback(lambda future: self._put((self, future)))

    def reported(self, answer: Future[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What it reported, with its place; that it has ended where its actor does not answer any more."""
        from ray.exceptions import RayActorError

        if (error := answer.exception()) is not None:
            cause = f"with its actor or its node ({last_line(error)})"
            messages = [{"event": "ended", "code": -signal.SIGKILL, "cause": cause, "in_flight": [], "log": []}]
            if not isinstance(error, RayActorError):  # the actor lives, and could not do what it was asked
                messages.insert(0, {"event": "error", "exit_code": ClipbatchError.exit_code, "message": str(error)})
            self.place.gone = True
        else:
            messages = answer.result()
        for message in messages:
            if message["event"] == "error":
                message["message"] = f"{self.seat}: {message['message']}"
            elif message["event"] == "stages":
                message["node"] = self.seat.address
        return messages


def last_line(error: BaseException) -> str:
    """The end of an error's text, which Ray begins with a trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
