"""The process that tries settings (`trials_main`) as its parent sees it: asked, timed, ended, started again."""

from __future__ import annotations

import time
from typing import TypedDict

from clipbatch.config import SettingValues
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.workers.child import Child, raise_failure
from clipbatch.workers.devices import Seat


class Rate(TypedDict, total=False):
    """What a trial gave: a rate and the stage that the others waited for, or why there is none."""

    images_per_s: float
    bottleneck: str
    error: str


class Trier:
    """Tries settings on one seat until `deadline`, on time.monotonic's clock."""

    def __init__(self, run: RunDir, seat: Seat, deadline: float) -> None:
        self._arguments = [str(run.path), seat.device, ",".join(map(str, seat.cores))]
        self._deadline = deadline
        self._child: Child | None = None

    def load(self) -> None:
        """Start the process and let it load the model.

        Raises: InputError if the model cannot be loaded, or takes longer than there is time.
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
        """`images_per_s` and `bottleneck` with `changes`, or `error`; None if the time was over before that."""
        if self._child is None or self._child.ended:
            self.load()
        assert self._child
        self._child.send({"settings": changes, "seconds": seconds})
        return self._answer(self._child)

    def close(self) -> None:
        """End the process."""
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
