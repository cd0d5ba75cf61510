"""Which worker does which shard. Pure: knows no process, no clock and no file, so that simulated time can drive it.

A worker asks when its reader has nothing more to read, while the rest of its pipeline is still full; so nothing has to
be handed out ahead, and no shard waits with one worker while another is idle. When the last shard has been given out,
a worker that is left with nothing gets a copy of the shard that has been in work the longest, if that one takes
unusually long, whoever does it: its worker may be slow, or stuck on a dead file server. The first to finish counts;
parts come out the same, so doing one twice harms nothing.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

# A shard is given to a second worker after this many times the median time of the last ones. That worker would be idle;
# simulated with 512 of them, 1.25 costs 1% of all work done twice, and 2.0 costs 5% of the time
# (benchmarks/scaling.py).
COPY_AFTER = 1.25
_REMEMBERED = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A shard to hand out."""

    shard: int
    # Only these row_ids of it.
    rows: tuple[int, ...] | None = None
    # Also where it has a part, which a new one replaces unless that has fewer ok rows.
    again: bool = False
    # The new part replaces any other.
    force: bool = False


class ShardScheduler:
    """Hands `assignments` out, in their order. Workers are named by whatever can be a key; times are in seconds."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        self._open = collections.deque(assignments)
        self._left = {assignment.shard for assignment in self._open}
        self._held: dict[Hashable, dict[int, Assignment]] = {}
        # When each worker began with the first shard that it holds.
        self._since: dict[Hashable, float] = {}
        self._times_s: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return not self._left

    @property
    def open(self) -> int:
        """How many shards nobody has."""
        return len(self._open)

    def assigned(self, worker: Hashable) -> dict[int, Assignment]:
        """What `worker` has been given and has not finished, in order."""
        return self._held.get(worker, {})

    def next_for(self, worker: Hashable, now: float) -> Assignment | None:
        """What `worker`, which has asked, is to do next; None: nothing at present."""
        assignment = self._open.popleft() if self._open else self._copy(worker, now)
        if assignment is not None:
            if not self.assigned(worker):
                self._since[worker] = now
            self._held.setdefault(worker, {})[assignment.shard] = assignment
        return assignment

    def done(self, worker: Hashable, shard: int, now: float) -> bool:
        """`worker` has finished `shard`; returns whether it is the first to do so."""
        first = shard in self._left
        self._left.discard(shard)
        if self.assigned(worker).pop(shard, None) is not None:
            self._times_s.append(now - self._since[worker])
        self._since[worker] = now
        return first

    def skip(self, worker: Hashable, shard: int) -> None:
        """`worker` need not do `shard`, which it has just been given: it is done already."""
        self._left.discard(shard)
        self.assigned(worker).pop(shard, None)

    def remove_worker(self, worker: Hashable) -> list[Assignment]:
        """`worker` is gone; what nobody else does now, to be put back when that is wise."""
        held = self._held.pop(worker, {})
        elsewhere = {shard for others in self._held.values() for shard in others}
        return [task for shard, task in held.items() if shard in self._left and shard not in elsewhere]

    def requeue(self, assignments: Iterable[Assignment]) -> None:
        """Hand these out again, before all others."""
        self._open.extendleft(reversed(list(assignments)))

    def _copy(self, worker: Hashable, now: float) -> Assignment | None:
        if self.assigned(worker) or not self._times_s:
            return None
        late_s = COPY_AFTER * statistics.median(self._times_s)
        last_begun: dict[int, tuple[float, Assignment]] = {}
        for other, held in self._held.items():
            for shard in held.keys() & self._left:
                since, _ = last_begun.get(shard, (self._since[other], None))
                last_begun[shard] = max(since, self._since[other]), held[shard]
        if not last_begun:
            return None
        since, assignment = min(last_begun.values(), key=lambda entry: (entry[0], entry[1].shard))
        return assignment if now - since > late_s else None
