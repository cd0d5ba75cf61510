"""The process that tries settings (`tune.trials`) as its parent sees it: asked, timed, ended, started again."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from clipbatch.errors import InputError, from_message
from clipbatch.rundir.layout import RunDir
from clipbatch.workers import signals
from clipbatch.workers.child import safe_environment
from clipbatch.workers.devices import Seat
from clipbatch.workers.worker import working_folder

_POLL_S = 0.2


class Trier:
    """Tries settings on one seat until `deadline`, on time.monotonic's clock."""

    def __init__(self, run: RunDir, seat: Seat, deadline: float) -> None:
        self._arguments = [str(run.path), seat.device, ",".join(map(str, seat.cores))]
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def load(self) -> None:
        """Start the process and let it load the model.

        Raises: InputError where the model cannot be had, or takes longer than there is time.
        """
        self.close()
        self._answers = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clipbatch.tools.tune.trials_main", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=safe_environment(),
            cwd=working_folder(),
        )
        threading.Thread(target=self._listen, args=(self._process, self._answers), daemon=True).start()
        found = self._answer()
        if found is None:
            raise InputError("the model was not loaded within --budget: give more seconds")
        if "exit_code" in found:
            raise from_message(found["exit_code"], found["message"])
        if "error" in found:
            raise InputError(f"the model cannot be loaded here: {found['error']}; see clipbatch doctor")

    def rate(self, changes: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """`images_per_s` and `bottleneck` with `changes`, or `error`; None where the time was over before that."""
        if self._process is None or self._process.poll() is not None:
            self.load()
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its end is on the way as an answer
            self._process.stdin.write(json.dumps({"settings": changes, "seconds": seconds}).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process:
            assert self._process.stdin
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(BrokenPipeError):  # of what it had not read yet
                self._process.stdin.close()

    def _answer(self) -> dict[str, Any] | None:
        while time.monotonic() < self._deadline:
            signals.check()
            try:
                return self._answers.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    @staticmethod
    def _listen(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[dict[str, Any]]) -> None:
        assert process.stdout
        with process.stdout as lines:
            for line in lines:
                answers.put(json.loads(line))
        code = process.wait()
        what = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        answers.put({"error": f"the process ended {what}"})
