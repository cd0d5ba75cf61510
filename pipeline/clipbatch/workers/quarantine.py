"""Find the rows that kill: each suspect is decoded alone in a process that may die, with limits on memory and time.

That takes a while, so a `Search` has a thread of its own and the workers on other devices are heard meanwhile. Knows
nothing of shards or of what is done with the answer. Nothing is blamed on company: a row that survives alone goes back
among the others.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, Union

from clipbatch.errors import ClipbatchError
from clipbatch.rundir.layout import RunDir
from clipbatch.types import Reject
from clipbatch.workers.child import Child

# More than Pillow needs for the largest image that `max_pixels` lets through by default.
MEMORY_MIB = 4096
# Within which a probe must have loaded its libraries.
_START_S = 300.0

# Takes the rows that kill and what they did, or the reason why there was no search; None: it came to no end.
Found = Callable[[Union[dict[int, Reject], ClipbatchError, None]], None]


class SuspectSearch:
    """Looks for those of `rows` (row_ids) that end a process or do not come back within `decode_timeout`."""

    def __init__(
        self,
        run: RunDir,
        device: str,
        rows: list[int],
        runtime: dict[str, Any],
        found: Found,
    ) -> None:
        """runtime: the settings of this invocation, `Settings.runtime`. found: called in the search's thread at its
        end."""
        self._timeout_s = runtime["read_timeout"] + runtime["decode_timeout"]
        self._arguments = [str(run.path), device, json.dumps(runtime), str(MEMORY_MIB)]
        self._rows, self._found = rows, found
        self._child: Child | None = None
        self._killed = False
        threading.Thread(target=self._look, name="search", daemon=True).start()

    def kill(self) -> None:
        """End the search, whose answer is of no use any more."""
        self._killed = True
        if self._child:
            self._child.kill()

    def _look(self) -> None:
        killers: dict[int, Reject] = {}
        left = self._rows
        try:
            while left and not self._killed:
                alive, reject = self._probe(left)
                left = left[alive:]
                if reject is not None and left:
                    killers[left[0]], left = reject, left[1:]
        except ClipbatchError as error:
            self._found(error)
        else:
            self._found(killers)

    def _probe(self, rows: list[int]) -> tuple[int, Reject | None]:
        """Put `rows` through one process: how many it lived through, and how the next one ended it."""
        with Child("clipbatch.workers.quarantine_main", *self._arguments) as child:
            self._child = child
            try:
                child.receive(_START_S)
            except (TimeoutError, EOFError):
                child.kill()
                said = "\n".join(child.log())
                raise ClipbatchError(f"the process that tries suspects cannot start:\n{said}") from None
            for number, row in enumerate(rows):
                child.send(row)
                try:
                    child.receive(self._timeout_s)
                except TimeoutError:
                    error = f"decoding it took longer than {self._timeout_s:g} s"
                    return number, Reject(status="timeout", error=error)
                except EOFError:
                    error = f"decoding it ends a process {child.how_it_ended()}"
                    return number, Reject(status="crashed", error=error)
            return len(rows), None
