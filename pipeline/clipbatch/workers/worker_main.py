"""The worker process: `python -m clipbatch.workers.worker_main RUN_DIR PLAN DEVICE CORES RUNTIME JOURNAL_FD`.

PLAN: fingerprint of the plan that its supervisor goes by. CORES: CPU cores to stay on, as in 0,1. RUNTIME: JSON of the
settings that this invocation chose anew. It talks to its supervisor in the `messages`, a line of JSON each.

When its input ends without a `Finish` its supervisor has died, and so does it, within an instant and in the middle of
whatever it does: nothing half-written can come of that.
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from clipbatch.config.memory_limits import too_little_memory
from clipbatch.errors import ClipbatchError, InterruptedRunError
from clipbatch.stages import fast_import, memory
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
    """Both directions of the talk with a supervisor."""

    def report(self, message: Report) -> None:
        """Tell the supervisor something."""

    def ask(self) -> Order:
        """What is next; waits for the answer."""


class _Channel:
    """The channel of a worker process."""

    def __init__(self) -> None:
        self._parent = Parent()
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        # Whether it has labelled a batch.
        self.works = False
        # Called when it is told to stop.
        self.last_words: Callable[[], None] = lambda: None
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
                self.last_words()
                os._exit(0)
            self._orders.put(order)
            if isinstance(order, Finish):
                return
        os._exit(InterruptedRunError.exit_code)


class _Remarks(logging.Handler):
    """Passes what the package logs on to the supervisor, which says each remark once."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.INFO)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.report(Remark(text=record.getMessage()))


@contextlib.contextmanager
def remarks_to(channel: Channel) -> Iterator[None]:
    """Meanwhile the package's log goes to `channel` and nowhere else."""
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
    """Work until told to finish; every failure becomes an `error` line and the exit code of its kind."""
    for signum in (signal.SIGINT, signal.SIGUSR1):  # the supervisor gets Ctrl-C too, and what srun sends, and decides
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
        channel.report(Failed(**report))
    sys.stderr.flush()
    os._exit(code)  # reading threads may hang in a file that never answers


def _stay_on(cores: set[int]) -> None:
    """Before anything is loaded, since libraries size their thread pools when they are."""
    with contextlib.suppress(OSError, AttributeError):  # a sandbox without it is slower, not wrong
        os.sched_setaffinity(0, cores)


def _work(
    channel: _Channel, path: str, fingerprint: str, device: str, runtime: dict[str, Any], journal_fd: int
) -> None:
    from clipbatch.config import hardware, models
    from clipbatch.rundir.layout import RunDir
    from clipbatch.stages.journal import Journal

    run, here = RunDir(path), hardware.alone(device)
    model = run.plan_of(fingerprint).settings["model"]
    with fast_import.fast_imports(transformers=models.wants_transformers(model)):
        from clipbatch.stages.pipeline import ShardPipeline
        from clipbatch.stages.profiling import Profile

    pipeline = ShardPipeline(run, fingerprint, here, runtime, Journal(journal_fd))
    channel.report(Loaded())
    threading.Thread(target=_show_life, args=(channel, pipeline), daemon=True).start()
    profile = Profile(runtime["profile"], here)

    def last_words() -> None:
        report = pipeline.report()
        channel.report(replace(report, facts={**report.facts, "device": device}))

    channel.last_words = last_words
    for _ in label(channel, pipeline):
        channel.works = True
        profile.step()
    profile.save()
    channel.last_words()


def label(channel: Channel, pipeline: ShardPipeline) -> Iterator[Written]:
    """Do what the supervisor assigns over `channel` until it says finish, and tell it what became of each shard."""
    from clipbatch.stages.pipeline import Task, execute

    def tasks() -> Iterator[Task]:
        while isinstance(order := channel.ask(), Assign):
            rows = None if order.rows is None else frozenset(order.rows)
            yield Task(shard=order.shard, rows=rows, rejects=order.rejects, force=order.force)

    def report_batches(rows: int, bad: int, bottleneck: str) -> None:
        channel.report(BatchDone(rows=rows, bad=bad, bottleneck=bottleneck))

    return execute(pipeline, tasks(), on_part=channel.report, on_batches=report_batches)


def _show_life(channel: Channel, pipeline: ShardPipeline) -> None:
    """Tell the supervisor that files are still read, since a batch of slow ones may take longer than it waits."""
    known = 0
    while True:
        time.sleep(_EMIT_EVERY_S)
        if pipeline.read.files != known:
            known = pipeline.read.files
            channel.report(Alive())


if __name__ == "__main__":
    main()
