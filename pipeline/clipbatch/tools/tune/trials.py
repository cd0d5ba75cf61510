"""The parent's side of the process that tries settings (`trials_main`): starts it, asks it, and restarts it."""

from __future__ import annotations

import time
from typing import TypedDict

from clipbatch.config import SettingValues
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.workers.child import Child, raise_failure
from clipbatch.workers.devices import Seat


class Rate(TypedDict, total=False):
    """The result of a trial: a rate and the slowest stage, or an error. hw_decoder_load: the share of the JPEG engines
    that was measured, as a run would, since no setting named one."""

    images_per_s: float
    bottleneck: str
    hw_decoder_load: float
    error: str


class TrialRunner:
    """Tries settings on one seat. deadline: in seconds of time.monotonic()."""

    def __init__(self, run: RunDir, seat: Seat, deadline: float) -> None:
        self._arguments = [str(run.path), seat.device, ",".join(map(str, seat.cores))]
        self._deadline = deadline
        self._child: Child | None = None

    def load(self) -> None:
        """Start the process and wait until it has loaded the model.

        Raises: InputError if the model cannot be loaded, or not before the deadline.
        """
        self.close()
        self._child = Child("clipbatch.tools.tune.trials_main", *self._arguments)
        answer = self._answer(self._child)
        if answer is None:
            raise InputError("the model was not loaded within --budget: give more seconds")
        raise_failure(answer)
        if "error" in answer:
            raise InputError(f"the model cannot be loaded here: {answer['error']}; see clipbatch doctor")

    def rate(self, changes: SettingValues, seconds: float) -> Rate | None:
        """`images_per_s` and `bottleneck` with `changes`, or `error`. None: the deadline came first."""
        if self._child is None or self._child.ended:
            self.load()
        assert self._child
        self._child.send({"settings": changes, "seconds": seconds})
        return self._answer(self._child)

    def close(self) -> None:
        """Kill the process."""
        if self._child:
            self._child.close()

    def _answer(self, child: Child) -> Rate | None:
        try:
            answer: Rate = child.receive(self._deadline - time.monotonic())
        except TimeoutError:
            return None
        except EOFError:
            return {"error": f"the process ended {child.how_it_ended()}"}
        return answer
