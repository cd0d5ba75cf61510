"""Whether 200 kills of each command that writes leave a trace.

    python benchmarks/kills.py [--kills 200] [--only run,rescore] [--seed 1] [--report PATH]

`run`, `run --repair` of a run whose parts are all damaged, `rescore`, `compact` and two nights of `run --incremental`
label small pictures with the embedded model, in shards of 16 rows, and get SIGKILL at random moments, one in three to
the supervisor and two in three to a worker (`tests/faults/killing.py`, of which the tests have a small form). Each time
the same command goes on. A kill counts where a file has been published since the one before it, or since the command
was started; those while it starts, lists or plans are made too, and counted apart.

Supervisors and workers are processes of their own as always, but they are forked from one that has imported torch and
the rest, so that a start costs a tenth; the tests start them as users do.

Expected: after each round, every file is that of undisturbed work, byte for byte, and none is left over.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
from clipbatch import cli
from clipbatch.stages import fast_import
from clipbatch.workers import child, worker_main

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.faults.killing import (
    Kills,
    Work,
    compact_work,
    increments_work,
    kill_often,
    repair_work,
    rescore_work,
    run_work,
)

EXPECTED = "every file is that of undisturbed work, byte for byte, and none is left over."
_POLL_S = 0.002


class Forked:
    """A process that does `main` and no more; what is used of `subprocess.Popen` works on it."""

    def __init__(self, main: Callable[[], object], descriptors: dict[int, int], kept: Sequence[int] = ()) -> None:
        """descriptors: what becomes its standard streams, by number. kept: others that it has, too."""
        self._code: int | None = None
        self._lock = threading.Lock()
        self.pid = os.fork()
        if not self.pid:
            try:
                for number, descriptor in descriptors.items():
                    os.dup2(descriptor, number)
                last = 2
                for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
                    os.closerange(last + 1, descriptor)
                    last = descriptor
                main()
            except SystemExit as asked:
                os._exit(asked.code if isinstance(asked.code, int) else 1)
            except BaseException:
                traceback.print_exc()
            os._exit(1)

    def poll(self) -> int | None:
        with self._lock:
            if self._code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if pid else None
            return self._code

    def wait(self, timeout: float = float("inf")) -> int:
        ended = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > ended:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedWorker(Forked):
    """Stands in for `subprocess.Popen` where a supervisor starts a worker."""

    def __init__(
        self, command: list[str], *, pass_fds: list[int], env: dict[str, str], cwd: str | None, **pipes: int
    ) -> None:
        assert set(pipes.values()) == {subprocess.PIPE}
        (theirs_in, ours_in), (ours_out, theirs_out), (ours_err, theirs_err) = os.pipe(), os.pipe(), os.pipe()

        def main() -> None:
            Path("/proc/self/comm").write_text("clipbatch.workers.worker_main")
            sys.argv = command[2:]
            worker_main.main()

        super().__init__(main, {0: theirs_in, 1: theirs_out, 2: theirs_err}, pass_fds)
        for descriptor in (theirs_in, theirs_out, theirs_err):
            os.close(descriptor)
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(ours_in, "wb"),
            os.fdopen(ours_out, "rb"),
            os.fdopen(ours_err, "rb"),
        )


def _popen(command: list[str], **more: Any) -> Any:
    is_worker = command[1:3] == ["-m", "clipbatch.workers.worker_main"]
    return ForkedWorker(command, **more) if is_worker else subprocess.Popen(command, **more)


class _Subprocess:
    """The module `subprocess` as `clipbatch.workers.child` is to see it."""

    Popen, PIPE, TimeoutExpired = staticmethod(_popen), subprocess.PIPE, subprocess.TimeoutExpired


def fork(arguments: Sequence[str], log: Path) -> Forked:
    """`clipbatch ARGUMENTS` in a process of its own."""

    def main() -> None:
        sys.argv = ["clipbatch", *arguments]
        child.subprocess = _Subprocess  # type: ignore[assignment]
        cli.main()

    with open(log, "wb") as file, open(os.devnull, "rb") as nothing:
        return Forked(main, {0: nothing.fileno(), 1: file.fileno(), 2: file.fileno()})


def do(*arguments: object) -> None:
    """`clipbatch ARGUMENTS`, undisturbed."""
    with tempfile.NamedTemporaryFile() as log:
        if code := fork([str(argument) for argument in arguments], Path(log.name)).wait():
            raise RuntimeError(f"exit code {code}: {Path(log.name).read_text()}")


MAKERS: dict[str, Callable[[Path], Work]] = {
    "run": lambda folder: run_work(folder, 480),
    "repair": lambda folder: repair_work(folder, 480, do),
    "rescore": lambda folder: rescore_work(folder, 320, do),
    "compact": lambda folder: compact_work(folder, 640, do),
    "increments": lambda folder: increments_work(folder, 640, nights=2),
}


def main() -> None:
    parser = harness.arguments("Kill every command that writes at random moments, and compare what it leaves.")
    parser.add_argument("--kills", type=int, default=200, help="of each command, that count")
    parser.add_argument("--only", default=",".join(MAKERS), help="some of the commands")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    on, found, lines = harness.machine(), dict[str, Any](), []
    with fast_import.fast_imports(transformers=False):
        import open_clip  # noqa: F401
    gc.freeze()
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as text:
            os.environ |= {"XDG_CACHE_HOME": f"{text}/cache", "HF_HUB_OFFLINE": "1"}
            print(name, file=sys.stderr, flush=True)
            begun = time.perf_counter()
            work = MAKERS[name](Path(text))
            done = kill_often(work, Path(text), kills=args.kills, seed=args.seed, do=do, start=fork)
            seconds = time.perf_counter() - begun
        lines.append(_line(name, done, seconds))
        found[name] = {"kills": done.counted, "early": done.early, "rounds": done.rounds, "wrong": done.wrong}
    header = ("command", "kills", "of supervisors", "of workers", "early", "rounds", "files that differ", "minutes")
    harness.finish("Kills", harness.table(header, lines), EXPECTED, {"machine": on, "commands": found}, args.report)
    os._exit(any(entry["wrong"] for entry in found.values()))  # as clipbatch does: libraries have last words


def _line(name: str, done: Kills, seconds: float) -> tuple[str, ...]:
    counts = (done.counted, done.supervisors, done.workers, done.early, done.rounds, len(done.wrong))
    return (name, *map(str, counts), f"{seconds / 60:.1f}")


if __name__ == "__main__":
    main()
