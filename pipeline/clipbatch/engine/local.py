"""Workers on this machine, one on each seat."""

from __future__ import annotations

from clipbatch import devices
from clipbatch.config import Settings
from clipbatch.engine.base import Job
from clipbatch.errors import InputError
from clipbatch.process import Worker, WorkerProcess
from clipbatch.quarantine import Found, Search
from clipbatch.ranks import Rank
from clipbatch.traces import numbered


class LocalEngine:
    """Raises: InputError as `devices.seats` does, and for settings of other engines."""

    expecting = False

    def __init__(self, settings: Settings, rank: Rank) -> None:
        if settings.launch.cpus_per_worker is not None:
            raise InputError(
                f"--cpus-per-worker {settings.launch.cpus_per_worker} is for --engine ray; here all workers share the "
                "cores that there are: leave it out"
            )
        self.device = settings.model.device
        self._seats = devices.seats(settings, rank)
        self._free = list(self._seats)

    def open(self, job: Job) -> None:
        self._job = job

    def arrivals(self, open_shards: int) -> list[Worker]:
        seats, self._free = self._free[:open_shards], []
        return [self._start(seat) for seat in seats]

    def again(self, worker: Worker) -> Worker:
        return self._start(_seat(worker))

    def give_up(self, worker: Worker) -> None:
        pass

    def search(self, worker: Worker, rows: list[int], found: Found) -> Search:
        return Search(self._job.run, _seat(worker).device, rows, self._job.runtime, found)

    def close(self) -> None:
        pass

    def _start(self, seat: devices.Seat) -> Worker:
        trace = numbered(self._job.runtime["profile"], "worker", self._seats.index(seat), len(self._seats))
        runtime = self._job.runtime | {"profile": trace}
        return WorkerProcess(self._job.run, self._job.plan, seat, runtime, self._job.events)


def _seat(worker: Worker) -> devices.Seat:
    assert isinstance(worker, WorkerProcess)
    return worker.seat
