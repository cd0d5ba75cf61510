"""The Ray actor: runs on a node of the cluster, keeps one worker process, and passes its messages on.

The worker process may die. The actor survives it, so the next worker, and the search for the row that killed the
process, run on the same node. Ray instantiates `RayActor` and calls its methods from several threads.
"""

from __future__ import annotations

import os
import queue
from typing import Any

import clipbatch
from clipbatch.config import SettingValues
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import remove_leftovers
from clipbatch.types import Reject
from clipbatch.workers import devices
from clipbatch.workers.messages import Ended, Order, Report
from clipbatch.workers.quarantine import SuspectSearch
from clipbatch.workers.worker import Event, WorkerProcess

# How long `events` waits for the first event.
_EVENT_WAIT_S = 10.0


class RayActor:
    """Works on one run. path: an absolute path or a URL. fingerprint: that of the plan to follow."""

    def __init__(self, path: str, fingerprint: str, runtime: SettingValues, device: str) -> None:
        self._run, self._fingerprint = RunDir(path), fingerprint
        self._runtime, self._device = runtime, device
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._process: WorkerProcess | None = None
        self._search: SuspectSearch | None = None

    def look(self, version: str, sample: str | None) -> dict[str, Any]:
        """Describe this actor's node and check that a worker can run there.

        Returns `node` (Ray's node ID), `address` and `gpu` (its number, or None); and `refused`, the reason, if no
        worker can run there. version: of the supervisor's clipbatch. sample: a file or folder of the input, which must
        exist on the node too.
        """
        import ray

        context, gpus = ray.get_runtime_context(), ray.get_gpu_ids()
        address = ray.util.get_node_ip_address()
        facts = {"node": context.get_node_id(), "address": address, "gpu": gpus[0] if gpus else None}
        try:
            self._check(f"node {address}", version, sample)
        except InputError as error:
            facts["refused"] = str(error)
        return facts

    def _check(self, node: str, version: str, sample: str | None) -> None:
        if version != clipbatch.__version__:
            raise InputError(
                f"{node} has clipbatch {clipbatch.__version__}, and this is {version}: install the same everywhere"
            )
        if not self._run.exists():
            raise InputError(
                f"{node} does not see the run directory {self._run.path}: give an --out that all nodes of the Ray "
                "cluster share, on a network file system or in an object store (s3://...)"
            )
        self._plan = self._run.plan_of(self._fingerprint)
        if sample is not None and not os.path.exists(sample):
            raise InputError(
                f"{node} does not see the input: {sample} does not exist there; put it where all nodes of the Ray "
                "cluster see it under the same path, or in an object store (s3://...)"
            )

    def start(self, slot: int, slots: int) -> list[Report]:
        """Start a worker process on the `slot`-th of `slots` equal pieces of this node's cores. Returns no reports."""
        seat = devices.Seat(device=self._device, cores=devices.share(devices.cores_by_node(), slot, slots))
        self._process = WorkerProcess(self._run, self._plan, seat, self._runtime, self._events)
        return []

    def events(self) -> list[Report]:
        """Wait a while for reports of the worker. Returns them in order."""
        reports: list[Report] = []
        try:
            reports.append(self._events.get(timeout=_EVENT_WAIT_S)[1])
            while True:
                reports.append(self._events.get_nowait()[1])
        except queue.Empty:
            pass
        if reports and isinstance(reports[-1], Ended):
            remove_leftovers(self._run.parts)
        return reports

    def send(self, order: Order) -> None:
        """Send `order` to the worker."""
        if self._process:
            self._process.send(order)

    def kill(self) -> None:
        """Kill the worker."""
        if self._process:
            self._process.kill()

    def search(self, rows: list[int]) -> dict[int, Reject] | str:
        """Search `rows` (row_ids) for those that kill a process, as `SuspectSearch` does. Returns what each of them
        did, or why the search failed."""
        results: queue.SimpleQueue[dict[int, Reject] | ClipbatchError | None] = queue.SimpleQueue()
        self._search = SuspectSearch(self._run, self._device, rows, self._runtime, results.put)
        result = results.get()
        return result if isinstance(result, dict) else str(result)

    def end(self) -> None:
        """Kill whatever is running, and remove the unfinished files that it leaves."""
        if self._search:
            self._search.kill()
        if self._process:
            self._process.kill()
            remove_leftovers(self._run.parts)
