"""Decides which worker processes which shard.

A worker asks for a shard when its reader has nothing left to read, while later stages of its pipeline are still busy.
So shards need not be assigned ahead of time, and no shard waits for one worker while another is idle.

At the end of a run one slow worker could hold up all others: its machine may be slow, or its file server may be dead.
So once every shard is assigned, an idle worker gets a copy of the shard that has been in progress the longest, if that
takes unusually long. The first worker to finish the shard counts. Both would write the same part, so the copy does no
harm.

The scheduler knows no processes, clocks or files; simulations drive it with their own time.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Hashable, Iterable, Set
from dataclasses import dataclass

# An idle worker gets a copy of a shard that takes longer than this many times the median of recent shards. Simulated
# with 512 workers, 1.25 costs 1% of all work done twice, and 2.0 costs 5% of the time (benchmarks/scaling.py).
COPY_AFTER = 1.25
# The median is taken over this many recent shards.
_RECENT_SHARDS = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A shard to process."""

    shard: int
    # Process only the rows with these row_ids. None: all rows of the shard.
    rows: tuple[int, ...] | None = None
    # Process the shard even if it has a part. The new part replaces the old one unless it has fewer ok rows.
    again: bool = False
    # The new part replaces an existing one in any case.
    force: bool = False

    @property
    def redo(self) -> bool:
        """Whether a shard that has a part is to be processed."""
        return self.again or self.rows is not None


class ShardScheduler:
    """Gives out `assignments` in their order. Any hashable value can identify a worker; times are in seconds."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        self._unassigned = collections.deque(assignments)
        self._incomplete = {assignment.shard for assignment in self._unassigned}
        self._assigned: dict[Hashable, dict[int, Assignment]] = {}
        # When each worker started the first of its assigned shards.
        self._started: dict[Hashable, float] = {}
        self._times_s: collections.deque[float] = collections.deque(maxlen=_RECENT_SHARDS)

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return not self._incomplete

    @property
    def unassigned(self) -> int:
        """How many shards are not assigned to any worker."""
        return len(self._unassigned)

    def is_open(self, shard: int) -> bool:
        """Whether nobody has done `shard` yet."""
        return shard in self._incomplete

    def add(self, assignments: Iterable[Assignment]) -> None:
        """Add shards that come after all others."""
        added = list(assignments)
        self._unassigned.extend(added)
        self._incomplete.update(assignment.shard for assignment in added)

    @property
    def in_progress(self) -> dict[int, Assignment]:
        """The shards that workers are processing and nobody has done yet."""
        assigned = {shard: task for tasks in self._assigned.values() for shard, task in tasks.items()}
        return {shard: task for shard, task in assigned.items() if self.is_open(shard)}

    def assigned(self, worker: Hashable) -> dict[int, Assignment]:
        """The shards that `worker` has been assigned and has not finished, in order."""
        return self._assigned.get(worker, {})

    def next_for(self, worker: Hashable, now: float) -> Assignment | None:
        """Assign the next shard to `worker`. None: there is nothing for it to do at present."""
        assignment = self._unassigned.popleft() if self._unassigned else self._copy(worker, now)
        if assignment is not None:
            if not self.assigned(worker):
                self._started[worker] = now
            self._assigned.setdefault(worker, {})[assignment.shard] = assignment
        return assignment

    def done(self, worker: Hashable, shard: int, now: float) -> bool:
        """Record that `worker` has finished `shard`. Returns whether it is the first worker to do so."""
        first = shard in self._incomplete
        self._incomplete.discard(shard)
        if self.assigned(worker).pop(shard, None) is not None:
            self._times_s.append(now - self._started[worker])
        self._started[worker] = now
        return first

    def done_elsewhere(self, shards: Set[int]) -> Set[int]:
        """Count `shards` as complete, since other processes have done them; workers may be at some. Returns those that
        were not complete before. A shard to redo is not complete then."""
        redo = {task.shard for task in (*self._unassigned, *self.in_progress.values()) if task.redo}
        completed = (self._incomplete & shards) - redo
        self._incomplete -= completed
        self._unassigned = collections.deque(task for task in self._unassigned if self.is_open(task.shard))
        return completed

    def skip(self, worker: Hashable, shard: int) -> None:
        """Take `shard` back from `worker`, to which it has just been assigned, and count it as complete."""
        self._incomplete.discard(shard)
        self.assigned(worker).pop(shard, None)

    def remove_worker(self, worker: Hashable) -> list[Assignment]:
        """Remove a worker that has ended.

        Returns the shards that no other worker is processing now. The caller requeues them.
        """
        assigned = self._assigned.pop(worker, {})
        elsewhere = {shard for others in self._assigned.values() for shard in others}
        return [task for shard, task in assigned.items() if shard in self._incomplete and shard not in elsewhere]

    def requeue(self, assignments: Iterable[Assignment]) -> None:
        """Put `assignments` back at the front of the queue."""
        self._unassigned.extendleft(reversed(list(assignments)))

    def _copy(self, worker: Hashable, now: float) -> Assignment | None:
        """The shard that has been in progress for longest, if it is late and `worker` is idle."""
        if self.assigned(worker) or not self._times_s:
            return None
        late_s = COPY_AFTER * statistics.median(self._times_s)
        # For a shard that several workers process, the start of the last one counts.
        in_progress: dict[int, tuple[float, Assignment]] = {}
        for other, assigned in self._assigned.items():
            for shard in assigned.keys() & self._incomplete:
                start, _ = in_progress.get(shard, (self._started[other], None))
                in_progress[shard] = max(start, self._started[other]), assigned[shard]
        if not in_progress:
            return None
        start, assignment = min(in_progress.values(), key=lambda entry: (entry[0], entry[1].shard))
        return assignment if now - start > late_s else None
