"""The worker process: `python -m clipbatch.workers.worker_main RUN_DIR PLAN DEVICE CORES RUNTIME JOURNAL_FD`.

PLAN is the fingerprint of the supervisor's plan. CORES lists the CPU cores to use, as in 0,1. RUNTIME is JSON: the
settings that do not belong to the plan and that this invocation chose. Worker and supervisor exchange the types of
`messages`, each as a line of JSON.

If standard input ends without a `Finish`, the supervisor has died. The worker then exits at once, whatever it is doing.
That is safe because a file gets its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from clipbatch.config import SettingValues
from clipbatch.config.memory_limits import too_little_memory
from clipbatch.errors import ClipbatchError, InterruptedRunError, UnfitSeatError
from clipbatch.stages import fast_import, memory
from clipbatch.types import Level
from clipbatch.workers.child import Parent, failure
from clipbatch.workers.messages import (
    Alive,
    Assign,
    BatchDone,
    Failed,
    Finish,
    Loaded,
    Order,
    Ready,
    Remark,
    Report,
    Stop,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    from clipbatch.stages.pipeline import ShardPipeline
    from clipbatch.stages.write import Written

_EMIT_EVERY_S = 0.2


class Channel(Protocol):
    """The connection to a supervisor."""

    def report(self, message: Report) -> None:
        """Send `message` to the supervisor."""

    def ask(self) -> Order:
        """Ask for the next order and wait for it."""


class _Channel:
    """The connection of a worker process, over its standard input and output."""

    def __init__(self) -> None:
        self._parent = Parent()
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        # The worker has finished at least one batch.
        self.works = False
        # Called before the process exits because of a Stop.
        self.send_report: Callable[[], None] = lambda: None
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def report(self, message: Report) -> None:
        self._parent.send(to_json(message))

    def ask(self) -> Order:
        self.report(Ready())
        return self._orders.get()

    def _listen(self) -> None:
        for line in self._parent.messages():
            order = from_json(line)
            if isinstance(order, Stop):
                self.send_report()
                os._exit(0)
            self._orders.put(order)
            if isinstance(order, Finish):
                return
        os._exit(InterruptedRunError.exit_code)


class _Remarks(logging.Handler):
    """Sends the package's log records to the supervisor, which shows each remark once."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.INFO)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        level: Level = "info" if record.levelno < logging.WARNING else "warning"
        self._channel.report(Remark(text=record.getMessage(), level=level))


@contextlib.contextmanager
def remarks_to(channel: Channel) -> Iterator[None]:
    """Within the context, the package's log records go to `channel` and nowhere else."""
    logger, handler = logging.getLogger("clipbatch"), _Remarks(channel)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def main() -> None:
    """Process shards until the supervisor says that none is left. A failure is sent as `Failed`, and its code becomes
    the exit code."""
    # The terminal sends Ctrl-C to the supervisor too, as srun sends SIGUSR1. The supervisor decides what happens.
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    path, plan, device, cores, runtime, journal = sys.argv[1:]
    if device == "cpu":
        memory.keep_freed()
    channel = _Channel()
    code = 0
    try:
        _stay_on({int(core) for core in cores.split(",")})
        with remarks_to(channel):
            _work(channel, path, plan, device, json.loads(runtime), int(journal))
    except BaseException as error:
        refusal = None if channel.works else too_little_memory(error)
        report = failure(refusal or error)
        code = report["exit_code"]
        if code == ClipbatchError.exit_code:
            print(report["message"], file=sys.stderr)
        channel.report(Failed(**report, fault=_fault_of(error)))
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait for reading threads, which may hang on a dead file server


def _fault_of(error: BaseException) -> Literal["error", "device", "unfit"]:
    if isinstance(error, UnfitSeatError):
        return "unfit"
    if "torch" not in sys.modules:
        return "error"
    from clipbatch.stages.cuda import is_device_error

    return "device" if is_device_error(error) else "error"


def _stay_on(cores: set[int]) -> None:
    """Use only these cores. Called before libraries are loaded, as they size their thread pools while loading."""
    with contextlib.suppress(OSError, AttributeError):  # not possible in some sandboxes; the worker is only slower
        os.sched_setaffinity(0, cores)


def _work(channel: _Channel, path: str, fingerprint: str, device: str, runtime: SettingValues, journal_fd: int) -> None:
    from clipbatch.config import hardware, models
    from clipbatch.rundir.layout import RunDir
    from clipbatch.stages.journal import Journal

    run, device_id = RunDir(path), hardware.hide_other_gpus(device)
    model = run.plan_of(fingerprint).settings["model"]
    with fast_import.fast_imports(transformers=models.wants_transformers(model)):
        from clipbatch.stages.pipeline import ShardPipeline
        from clipbatch.stages.profiling import Profile

    pipeline = ShardPipeline(run, fingerprint, device_id, runtime, Journal(journal_fd))
    channel.report(Loaded())
    threading.Thread(target=_report_reading, args=(channel, pipeline), daemon=True).start()
    profile = Profile(runtime["profile"], device_id)

    def send_report() -> None:
        report = pipeline.report()
        channel.report(replace(report, facts={**report.facts, "device": device}))

    channel.send_report = send_report
    for _ in label(channel, pipeline):
        channel.works = True
        profile.step()
    profile.save()
    send_report()


def label(channel: Channel, pipeline: ShardPipeline) -> Iterator[Written]:
    """Process the shards that the supervisor assigns until it sends `Finish`, and report each finished shard to it.

    Yields each batch that has been written.
    """
    from clipbatch.stages.pipeline import Task, execute

    def tasks() -> Iterator[Task]:
        while isinstance(order := channel.ask(), Assign):
            rows = None if order.rows is None else frozenset(order.rows)
            yield Task(shard=order.shard, rows=rows, rejects=order.rejects, force=order.force)

    def report_batches(rows: int, bad: Counter[str], bottleneck: str) -> None:
        channel.report(BatchDone(rows=rows, bad=dict(bad), bottleneck=bottleneck))

    return execute(pipeline, tasks(), on_part=channel.report, on_batches=report_batches)


def _report_reading(channel: Channel, pipeline: ShardPipeline) -> None:
    """Send `Alive` while files are read: a batch of slow files may take longer than the supervisor's timeout."""
    known = 0
    while True:
        time.sleep(_EMIT_EVERY_S)
        if pipeline.read.files != known:
            known = pipeline.read.files
            channel.report(Alive())


if __name__ == "__main__":
    main()
