"""What an engine is: it starts workers, somewhere, and knows nothing of shards.

Whatever the engine, the supervisor hands out the shards, counts, and decides who is started again.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from clipbatch.process import Event, Worker
from clipbatch.quarantine import Found
from clipbatch.rundir import Plan, RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all workers of an engine work on."""

    run: RunDir
    plan: Plan
    runtime: dict[str, Any]
    """The settings of this invocation, `Settings.runtime`."""
    events: queue.SimpleQueue[Event]
    """For what workers report."""
    say: Callable[[str], None]
    """For remarks on the run."""


class Killable(Protocol):
    """A search for the rows that kill, under way."""

    def kill(self) -> None: ...


class Engine(Protocol):
    """Where workers run. Called by one thread."""

    device: str
    """What workers run on, as in `ModelSettings.device`; auto where this machine's own decide."""

    @property
    def expecting(self) -> bool:
        """Whether workers may still come where there is none."""

    def open(self, job: Job) -> None:
        """Take the job on. Called once, before all of what follows."""

    def arrivals(self, open_shards: int) -> list[Worker]:
        """Workers that have come since the last call; no more of them than `open_shards`, which nobody has."""

    def again(self, worker: Worker) -> Worker | None:
        """Start a worker in the place of one that has ended; None where its seat is gone too."""

    def give_up(self, worker: Worker) -> None:
        """No worker is to be started on that one's seat again."""

    def search(self, worker: Worker, rows: list[int], found: Found) -> Killable:
        """Look where the worker was for those of `rows` (row_ids) that kill, as `quarantine.Search` does."""

    def close(self) -> None:
        """End whatever still runs."""
