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
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from clipbatch.errors import ClipbatchError, InterruptedRunError, brief
from clipbatch.stages import fast_import, memory

_EMIT_EVERY_S = 0.2


class _Channel:
    """Both directions of the talk with the supervisor."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._lock = threading.Lock()
        os.dup2(2, 1)  # whatever a library prints goes to the log, not between our lines
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.last_words: Callable[[], None] = lambda: None
        """Called when it is told to stop."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def emit(self, event: str, **values: Any) -> None:
        with self._lock:
            self._out.write(json.dumps({"event": event, **values}) + "\n")
            self._out.flush()

    def ask(self) -> dict[str, Any]:
        """What is next; waits for the answer."""
        self.emit("next")
        return self._answers.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
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
        code = error.exit_code if isinstance(error, ClipbatchError) else 1
        text = str(error) if isinstance(error, ClipbatchError) else "".join(traceback.format_exception(error))
        if code == ClipbatchError.exit_code:
            print(text, file=sys.stderr)
        channel.emit("error", exit_code=code, message=text, what=brief(error))
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
    from clipbatch.stages.flow import bottleneck
    from clipbatch.stages.journal import Journal
    from clipbatch.types import Reject

    run, here = RunDir(path), hardware.alone(device)
    model = run.plan_of(fingerprint).settings["model"]
    with fast_import.quick_imports(transformers=models.wants_transformers(model)):
        from clipbatch.stages.pipeline import Task, Worker
        from clipbatch.stages.profiling import Profile

    worker = Worker(run, fingerprint, here, runtime, Journal(journal_fd), lambda text: channel.emit("say", text=text))
    channel.emit("loaded")

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

    threading.Thread(target=_show_life, args=(channel, worker), daemon=True).start()
    profile = Profile(runtime["profile"], here)
    flow = worker.label(tasks())

    def report() -> None:
        facts = worker.device_facts() | {"device": device}
        channel.emit("stages", times=flow.times(), peak_mib=_peak_mib(), **facts)

    channel.last_words = report
    rows = bad = 0
    sent = time.perf_counter()
    for written in flow:
        profile.step()
        rows, bad = rows + written.rows, bad + written.bad
        now = time.perf_counter()
        if written.part or now - sent > _EMIT_EVERY_S:
            channel.emit("batch", rows=rows, bad=bad, bottleneck=bottleneck(flow.times()))
            rows, bad, sent = 0, 0, now
        if written.part:
            channel.emit("part", **asdict(written.part))
    profile.save()
    report()


def _show_life(channel: _Channel, worker: Any) -> None:
    """Tell the supervisor that files are still read, since a batch of slow ones may take longer than it waits."""
    known = 0
    while True:
        time.sleep(_EMIT_EVERY_S)
        if worker.read.files != known:
            known = worker.read.files
            channel.emit("alive")


def _peak_mib() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
