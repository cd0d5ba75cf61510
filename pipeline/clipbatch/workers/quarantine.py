"""Finds the rows that kill a process: decodes each suspect alone, in a process with limits on memory and time.

A worker that dies had many rows in hand, and perhaps only one of them killed it. A row is quarantined only if it kills
a process on its own; a row that survives goes back to the workers. Such a search takes a while, so a `SuspectSearch`
runs in a thread of its own, and the supervisor keeps listening to the other workers. This module knows nothing of
shards, nor what becomes of the answer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Union

from clipbatch.config import SettingValues
from clipbatch.errors import ClipbatchError
from clipbatch.rundir.layout import RunDir
from clipbatch.types import Reject
from clipbatch.workers.child import Child, raise_failure

# More than Pillow needs for the largest image that `max_pixels` allows by default.
MEMORY_MIB = 4096
# How long a probe process may take to load its libraries.
_START_S = 300.0

# Takes the result of a search: what each killing row did, or the error that ended the search. None: it was cut off.
OnResult = Callable[[Union[dict[int, Reject], ClipbatchError, None]], None]


class SuspectSearch:
    """Searches `rows` (row_ids) for those that end a process or take longer than the settings' time limits."""

    def __init__(
        self,
        run: RunDir,
        device: str,
        rows: list[int],
        runtime: SettingValues,
        on_result: OnResult,
    ) -> None:
        """runtime: the settings of this invocation, `Settings.runtime`. on_result: called once, from the thread of
        the search."""
        self._timeout_s = runtime["read_timeout"] + runtime["decode_timeout"]
        self._arguments = [str(run.path), device, json.dumps(runtime), str(MEMORY_MIB)]
        self._rows, self._on_result = rows, on_result
        self._child: Child | None = None
        self._killed = False
        threading.Thread(target=self._search, name="search", daemon=True).start()

    def kill(self) -> None:
        """End the search early. Its result is incomplete then."""
        self._killed = True
        if self._child:
            self._child.kill()

    def _search(self) -> None:
        killers: dict[int, Reject] = {}
        left = self._rows
        try:
            while left and not self._killed:
                survivors, reject = self._probe(left)
                left = left[survivors:]
                if reject is not None and left:
                    killers[left[0]], left = reject, left[1:]
        except ClipbatchError as error:
            self._on_result(error)
        else:
            self._on_result(killers)

    def _probe(self, rows: list[int]) -> tuple[int, Reject | None]:
        """Send `rows` to one process. Returns how many of them it survived, and what the next one did to it."""
        with Child("clipbatch.workers.quarantine_main", *self._arguments) as child:
            self._child = child
            try:
                child.receive(_START_S)
            except (TimeoutError, EOFError):
                child.kill()
                log = "\n".join(child.log())
                raise ClipbatchError(f"the process that decodes suspect images did not start:\n{log}") from None
            for number, row in enumerate(rows):
                child.send(row)
                try:
                    answer = child.receive(self._timeout_s)
                except TimeoutError:
                    error = f"decoding it took longer than {self._timeout_s:g} s"
                    return number, Reject(status="timeout", error=error)
                except EOFError:
                    error = f"decoding it ends a process {child.how_it_ended()}"
                    return number, Reject(status="crashed", error=error)
                if answer != row:  # an exception, as of a GPU that fails
                    if answer["exit_code"] != ClipbatchError.exit_code:
                        raise_failure(answer)
                    return number, Reject(status="crashed", error=f"decoding it ends a process: {answer['what']}")
            return len(rows), None
