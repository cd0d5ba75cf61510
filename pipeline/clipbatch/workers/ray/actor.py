"""What runs on a node of a Ray cluster: an actor that keeps one worker process, and passes on what is said both ways.

The process may die; the actor lives on, so that the next one and the search for what killed it run where it did. Ray
makes an actor of the class, and calls its methods in several threads.
"""

from __future__ import annotations

import os
import queue
from typing import Any

import clipbatch
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import remove_leftovers
from clipbatch.types import Reject
from clipbatch.workers import devices
from clipbatch.workers.messages import Ended, Order, Report
from clipbatch.workers.quarantine import SuspectSearch
from clipbatch.workers.worker import Event, WorkerProcess

# How long a question for events waits for the first one.
_WAIT_S = 10.0


class RayActor:
    """Works on the run in `path`, an absolute one or a url, by the plan with `fingerprint`."""

    def __init__(self, path: str, fingerprint: str, runtime: dict[str, Any], device: str) -> None:
        self._run, self._fingerprint = RunDir(path), fingerprint
        self._runtime, self._device = runtime, device
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._process: WorkerProcess | None = None
        self._search: SuspectSearch | None = None

    def look(self, version: str, sample: str | None) -> dict[str, Any]:
        """Where this is: `node`, `address` and `gpu`, its number where it has one; or why no work can be done here,
        `refused`. version: of the other clipbatch. sample: a file or folder of the input that has to be there."""
        import ray

        context, gpus = ray.get_runtime_context(), ray.get_gpu_ids()
        address = ray.util.get_node_ip_address()
        found = {"node": context.get_node_id(), "address": address, "gpu": gpus[0] if gpus else None}
        try:
            self._check(f"node {address}", version, sample)
        except InputError as error:
            found["refused"] = str(error)
        return found

    def _check(self, node: str, version: str, sample: str | None) -> None:
        if version != clipbatch.__version__:
            raise InputError(
                f"{node} has clipbatch {clipbatch.__version__}, and this is {version}: install the same everywhere"
            )
        if not self._run.exists():
            raise InputError(
                f"{node} does not see the run directory {self._run.path}: give an --out that all nodes of the Ray "
                "cluster share, on a network file system or in a store (s3://...)"
            )
        self._plan = self._run.plan_of(self._fingerprint)
        if sample is not None and not os.path.exists(sample):
            raise InputError(
                f"{node} does not see the input: {sample} is not there; put it where all nodes of the Ray cluster see "
                "it, under the same path, or in a store (s3://...)"
            )

    def start(self, slot: int, slots: int) -> list[Report]:
        """Start a worker process on the `slot`-th of `slots` equal pieces of this node's cores; nothing is reported."""
        seat = devices.Seat(device=self._device, cores=devices.share(devices.cores_by_node(), slot, slots))
        self._process = WorkerProcess(self._run, self._plan, seat, self._runtime, self._events)
        return []

    def events(self) -> list[Report]:
        """What the worker has reported, in order; waits for it a while."""
        found: list[Report] = []
        try:
            found.append(self._events.get(timeout=_WAIT_S)[1])
            while True:
                found.append(self._events.get_nowait()[1])
        except queue.Empty:
            pass
        if found and isinstance(found[-1], Ended):
            remove_leftovers(self._run.parts)
        return found

    def send(self, order: Order) -> None:
        """Tell the worker what to do."""
        if self._process:
            self._process.send(order)

    def kill(self) -> None:
        """End the worker."""
        if self._process:
            self._process.kill()

    def search(self, rows: list[int]) -> dict[int, Reject] | str:
        """Those of `rows` (row_ids) that kill, and what they do; or why there was no search."""
        answer: queue.SimpleQueue[dict[int, Reject] | ClipbatchError | None] = queue.SimpleQueue()
        self._search = SuspectSearch(self._run, self._device, rows, self._runtime, answer.put)
        found = answer.get()
        return found if isinstance(found, dict) else str(found)

    def end(self) -> None:
        """End whatever runs, and clear away what it had not published."""
        if self._search:
            self._search.kill()
        if self._process:
            self._process.kill()
            remove_leftovers(self._run.parts)
