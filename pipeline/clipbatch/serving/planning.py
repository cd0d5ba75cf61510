"""Plan runs in a process that may die, so that a manifest that ends or exhausts a parser does not end the service.

The process stays warm from job to job; after its death the next job starts another one.
"""

from __future__ import annotations

from pathlib import Path

from clipbatch.config import Settings
from clipbatch.errors import ClipbatchError
from clipbatch.workers.child import Child, raise_failure


class PlanProcess:
    """Used by one thread. As a context manager it ends the process at the end."""

    def __init__(self) -> None:
        """Starts the process, and returns before it is ready."""
        self._child: Child | None = _start()
        self._ready = False

    def __enter__(self) -> PlanProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.close()

    def plan(self, settings: Settings, out: Path) -> None:
        """Plan the run of `settings` into the folder `out`, as `runs.plan.plan` does.

        Raises: what that raises; ClipbatchError where the process dies; InterruptedRunError when a signal comes.
        """
        if self._child is None or self._child.ended:
            self._close()
            self._child, self._ready = _start(), False
        try:
            if not self._ready:
                self._child.receive()
                self._ready = True
            self._child.send({"settings": settings.flat(), "out": str(out)})
            answer = self._child.receive()
        except EOFError:
            how, log = self._child.how_it_ended(), self._child.log()
            self._close()
            raise ClipbatchError("\n".join([f"planning the job ended a process {how}", *log])) from None
        raise_failure(answer)

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None


def _start() -> Child:
    return Child("clipbatch.runs.plan_main")
