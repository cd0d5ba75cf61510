"""`clipbatch ARGS` in the process of the tests, its workers as threads whose models stay loaded.

Each start of a process with torch costs seconds, which tests of what a run leaves behind need not pay. All but the
process around it is the same: command line, plan, supervisor, stages. What processes do is tested with real ones.
"""

import contextlib
import functools
import io
import os
import queue
import resource
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from clipbatch.cli import app, exit_code
from clipbatch.cli.output import _log
from clipbatch.config import DecodeSettings, ModelSettings, ReadSettings, Settings
from clipbatch.errors import ClipbatchError, brief
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.stages.flow import bottleneck
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import Loaded, Task
from clipbatch.stages.pipeline import Worker as Stages
from clipbatch.storage import stores
from clipbatch.types import Reject
from clipbatch.workers import engine as local
from clipbatch.workers import worker
from clipbatch.workers.devices import Seat


@functools.lru_cache(maxsize=3)
def _loaded(model: ModelSettings, decode: DecodeSettings, read: ReadSettings, batch_size: int, device: str) -> Loaded:
    return Loaded.load(Settings(model=model, decode=decode, read=read), batch_size, device)


class WarmWorker(worker.Worker):
    """The worker of this process: one at a time, since files under way are named by the process that writes them."""

    seat: Seat
    _only = threading.Lock()

    def __init__(
        self, run: RunDir, plan: Plan, seat: Seat, runtime: dict[str, Any], events: "queue.SimpleQueue[worker.Event]"
    ) -> None:
        super().__init__(seat)
        self._run, self._plan, self._runtime, self._events = run, plan, runtime, events
        self._answers: queue.SimpleQueue[tuple[dict[str, Any], dict[int, Reject]]] = queue.SimpleQueue()
        self._killed = False
        assert self._only.acquire(blocking=False), "several workers are several processes"
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def send(self, message: dict[str, Any], rejects: Mapping[int, Reject] | None = None) -> None:
        self._answers.put((message, dict(rejects or {})))

    def kill(self) -> None:
        self._killed = True
        self.send({"finish": True})
        self._thread.join()

    def _emit(self, event: str, **values: Any) -> None:
        self._events.put((self, {"event": event, **values}))

    def _live(self) -> None:
        code = 0
        try:
            with contextlib.closing(Journal()) as journal:
                self._work(journal)
        except Exception as error:
            code = error.exit_code if isinstance(error, ClipbatchError) else 1
            text = str(error) if isinstance(error, ClipbatchError) else "".join(traceback.format_exception(error))
            self._emit("error", exit_code=code, message=text, what=brief(error))
        self._only.release()
        self._emit("ended", code=code, in_flight=[], log=[])

    def _tasks(self) -> Iterator[Task]:
        while True:
            self._emit("next")
            message, rejects = self._answers.get()
            if "shard" not in message:
                return
            rows = message.get("rows")
            yield Task(shard=message["shard"], rows=None if rows is None else frozenset(rows), rejects=rejects)

    def _work(self, journal: Journal) -> None:
        run, plan, device = self._run, self._plan, self.seat.device
        settings = plan.run_settings().replace(**self._runtime)
        engine = None
        if plan.rescored is None:
            engine = _loaded(settings.model, settings.decode, settings.read, plan.batch_size, device)
        stages = Stages(run, plan.fingerprint, device, self._runtime, journal, engine=engine)
        self._emit("loaded")
        flow = stages.label(self._tasks())
        with contextlib.closing(iter(flow)) as written_ones:  # type: ignore[type-var]
            for written in written_ones:
                if self._killed:
                    return
                self._emit("batch", rows=written.rows, bad=written.bad, bottleneck=bottleneck(flow.times()))
                if written.part:
                    self._emit("part", shard=written.part.shard, rows=written.part.rows, counts=written.part.counts)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self._emit("stages", times=flow.times(), peak_mib=peak_mib, **stages.device_facts())


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
            _log["format"] = "text"
            stores._opened.clear()  # the environment says where a store is, and it may be another one
            found = exit_code(lambda: app(texts, prog_name="clipbatch"))
        assert code in (None, found), f"exit code {found}, expected {code}\n{out.getvalue()}\n{err.getvalue()}"
        return subprocess.CompletedProcess(texts, found, out.getvalue(), err.getvalue())
