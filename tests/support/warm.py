"""`clipbatch ARGS` in the process of the tests, its workers as threads whose models stay loaded.

Each start of a process with torch costs seconds, which tests of what a run leaves behind need not pay. All but the
process around it is the same: command line, plan, supervisor, stages. What processes do is tested with real ones.
"""

import contextlib
import functools
import io
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any
from unittest import mock

from clipbatch.cli import app, exit_code, output
from clipbatch.config import DecodeSettings, ModelSettings, ReadSettings, Settings
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.stages.journal import Journal
from clipbatch.stages.loading import LoadedModel, fit
from clipbatch.stages.pipeline import ShardPipeline
from clipbatch.storage import stores
from clipbatch.workers import engine as local
from clipbatch.workers import worker
from clipbatch.workers.child import failure
from clipbatch.workers.devices import Seat
from clipbatch.workers.messages import Ended, Failed, Finish, Loaded, Order, Ready, Report
from clipbatch.workers.worker_main import label, remarks_to


@functools.lru_cache(maxsize=3)
def _loaded(
    model: ModelSettings, decode: DecodeSettings, read: ReadSettings, batch_size: int, device: str
) -> LoadedModel:
    return fit(Settings(model=model, decode=decode, read=read), batch_size, device)


class _KilledError(Exception):
    """The supervisor has killed this worker."""


class WarmWorker(worker.WorkerHandle):
    """The worker of this process: one at a time, since files under way are named by the process that writes them."""

    seat: Seat
    _only = threading.Lock()

    def __init__(
        self, run: RunDir, plan: Plan, seat: Seat, runtime: dict[str, Any], events: "queue.SimpleQueue[worker.Event]"
    ) -> None:
        super().__init__(seat)
        self._run, self._plan, self._runtime, self._events = run, plan, runtime, events
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._killed = False
        assert self._only.acquire(blocking=False), "several workers are several processes"
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def send(self, order: Order) -> None:
        self._orders.put(order)

    def kill(self) -> None:
        self._killed = True
        self.send(Finish())
        self._thread.join()

    def report(self, message: Report) -> None:
        if self._killed:
            raise _KilledError
        self._events.put((self, message))

    def ask(self) -> Order:
        self.report(Ready())
        return self._orders.get()

    def _live(self) -> None:
        code = 0
        try:
            with contextlib.closing(Journal()) as journal, remarks_to(self):
                self._work(journal)
        except _KilledError:
            code = -signal.SIGKILL
        except Exception as error:
            report = failure(error)
            code = report["exit_code"]
            self._events.put((self, Failed(**report)))
        self._only.release()
        self._events.put((self, Ended(code=code)))

    def _work(self, journal: Journal) -> None:
        run, plan, device = self._run, self._plan, self.seat.device
        settings = plan.run_settings().replace(**self._runtime)
        model = None
        if plan.rescored is None:
            model = _loaded(settings.model, settings.decode, settings.read, plan.batch_size, device)
        pipeline = ShardPipeline(run, plan.fingerprint, device, self._runtime, journal, model=model)
        self.report(Loaded())
        for _ in label(self, pipeline):
            pass
        self.report(pipeline.report())


class Warm:
    """Called as `conftest.cli` is; `code` None takes any exit code."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __call__(
        self,
        *args: object,
        code: int | None = 0,
        stdin: str = "",
        cwd: str | os.PathLike[str] = ".",
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        texts = [str(arg) for arg in args]
        out, err = io.StringIO(), io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        with (
            mock.patch.dict(os.environ, {**self._environment, **(env or {})}),
            mock.patch.object(local, "WorkerProcess", WarmWorker),
            mock.patch.object(sys, "stdin", given),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(cwd),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            output.reset()
            stores.forget()
            found = exit_code(lambda: app(texts, prog_name="clipbatch"))
        assert code in (None, found), f"exit code {found}, expected {code}\n{out.getvalue()}\n{err.getvalue()}"
        return subprocess.CompletedProcess(texts, found, out.getvalue(), err.getvalue())
