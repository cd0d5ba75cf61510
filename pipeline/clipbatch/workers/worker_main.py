"""The worker process: `python -m clipbatch.workers.worker_main RUN_DIR PLAN DEVICE CORES RUNTIME JOURNAL_FD`.

PLAN: fingerprint of the plan that its supervisor goes by. CORES: CPU cores to stay on, as in 0,1. RUNTIME: JSON of the
settings that this invocation chose anew. It is spoken to in JSON lines. On standard output: loaded, say, next, batch,
part, stages, alive, error. On standard input the answers to next: {"shard": 3}, {"finish": true},
{"shard": 3, "rows": [..], "rejects": {..}, "force": true}; and at any time {"stop": true}, when what it does has been
done by another. When its input ends without a finish its supervisor has died, and so does it, within an instant and in
the middle of whatever it does: nothing half-written can come of that.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from clipbatch.config.memory_limits import too_little_memory
from clipbatch.errors import ClipbatchError, InterruptedRunError
from clipbatch.stages import fast_import, memory
from clipbatch.workers.child import Parent, failure

if TYPE_CHECKING:
    from clipbatch.stages.pipeline import ShardPipeline
    from clipbatch.stages.write import Written
    from clipbatch.types import PartDone

_EMIT_EVERY_S = 0.2


class Channel(Protocol):
    """Both directions of the talk with a supervisor."""

    def emit(self, event: str, **values: Any) -> None:
        """Tell it something."""

    def ask(self) -> dict[str, Any]:
        """What is next; waits for the answer."""


class _Channel(Parent):
    """The channel of a worker process."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.works = False
        """Whether it has labelled a batch."""
        self.last_words: Callable[[], None] = lambda: None
        """Called when it is told to stop."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def emit(self, event: str, **values: Any) -> None:
        self.send({"event": event, **values})

    def ask(self) -> dict[str, Any]:
        """What is next; waits for the answer."""
        self.emit("next")
        return self._answers.get()

    def _listen(self) -> None:
        for message in self.messages():
            if "stop" in message:
                self.last_words()
                os._exit(0)
            self._answers.put(message)
            if "finish" in message:
                return
        os._exit(InterruptedRunError.exit_code)


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
        _work(channel, path, plan, device, json.loads(runtime), int(journal))
    except BaseException as error:
        refusal = None if channel.works else too_little_memory(error)
        report = failure(refusal or error)
        code = report["exit_code"]
        if code == ClipbatchError.exit_code:
            print(report["message"], file=sys.stderr)
        channel.emit("error", **report)
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
    with fast_import.quick_imports(transformers=models.wants_transformers(model)):
        from clipbatch.stages.pipeline import ShardPipeline
        from clipbatch.stages.profiling import Profile

    say = functools.partial(_say, channel)
    pipeline = ShardPipeline(run, fingerprint, here, runtime, Journal(journal_fd), say)
    channel.emit("loaded")
    threading.Thread(target=_show_life, args=(channel, pipeline), daemon=True).start()
    profile = Profile(runtime["profile"], here)
    channel.last_words = lambda: channel.emit("stages", **pipeline.report(), device=device)
    for _ in label(channel, pipeline):
        channel.works = True
        profile.step()
    profile.save()
    channel.last_words()


def label(channel: Channel, pipeline: ShardPipeline) -> Iterator[Written]:
    """Do what the supervisor assigns over `channel` until it says finish, and tell it what became of each shard."""
    from clipbatch.stages.pipeline import Task, execute
    from clipbatch.types import Reject

    def tasks() -> Iterator[Task]:
        while "shard" in (message := channel.ask()):
            rows = message.get("rows")
            rejects = {int(row): Reject(**reject) for row, reject in message.get("rejects", {}).items()}
            yield Task(
                shard=message["shard"],
                rows=None if rows is None else frozenset(rows),
                rejects=rejects,
                force=message.get("force", False),
            )

    def tell_batches(rows: int, bad: int, bottleneck: str) -> None:
        channel.emit("batch", rows=rows, bad=bad, bottleneck=bottleneck)

    def tell_part(part: PartDone) -> None:
        channel.emit("part", **asdict(part))

    return execute(pipeline, tasks(), on_part=tell_part, on_batches=tell_batches)


def _say(channel: Channel, text: str) -> None:
    channel.emit("say", text=text)


def _show_life(channel: Channel, pipeline: ShardPipeline) -> None:
    """Tell the supervisor that files are still read, since a batch of slow ones may take longer than it waits."""
    known = 0
    while True:
        time.sleep(_EMIT_EVERY_S)
        if pipeline.read.files != known:
            known = pipeline.read.files
            channel.emit("alive")


if __name__ == "__main__":
    main()
