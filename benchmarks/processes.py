"""Commands that the benchmarks start, what they take, and what /proc says of them while they run.

Imports neither torch nor DALI: the peak memory that the kernel counts for a command begins with its parent's size.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What a command took, with the processes that it started and waited for."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    """Of the largest of its processes."""
    output: str


def clipbatch_command(*args: object) -> list[str]:
    """`clipbatch ARGS`, as a user starts it."""
    return [sys.executable, "-m", "clipbatch", *map(str, args)]


def run_command(command: Sequence[str], cores: set[int] | None = None) -> Took:
    """Run `command` to its end. cores: the ones that it may use. Raises: SystemExit with its messages if it fails."""
    with tempfile.TemporaryFile("w+") as messages:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        assert process.stdout
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            messages.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{messages.read()}")
    cpu_s, peak_mib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return Took(wall_s=wall_s, cpu_s=cpu_s, peak_mib=peak_mib, output=output)


def run_clipbatch(*args: object, cores: set[int] | None = None) -> Took:
    """Run `clipbatch ARGS` to its end."""
    return run_command(clipbatch_command(*args), cores)


def run_report(*args: object, cores: set[int] | None = None) -> tuple[dict[str, Any], Took]:
    """The report of `clipbatch ARGS`, a command that ends in one, and what it took."""
    took = run_clipbatch(*args, "--json", "--quiet", cores=cores)
    return json.loads(took.output), took


def in_own_process(function: Callable[..., object], *texts: object) -> list[str]:
    """The command that calls `function`, which is at the top of a benchmark, with `texts` in a fresh process."""
    file = Path(inspect.getfile(function)).resolve()
    code = f"import sys; sys.path.insert(0, {str(file.parent)!r}); import {file.stem} as script; "
    code += f"script.{function.__name__}(*sys.argv[1:])"
    return [sys.executable, "-W", "ignore", "-c", code, *map(str, texts)]


def watch(command: Sequence[str], every_s: float, look: Callable[[int, float], T]) -> list[T]:
    """Run `command`, whose output is dropped; what `look` says of its process id and its age in seconds, so often."""
    begun, moments = time.perf_counter(), list[T]()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            moments.append(look(process.pid, time.perf_counter() - begun))
            time.sleep(every_s)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return moments


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run. Source: proc(5), children."""
    pids = list[int]()
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, listed.read_text().split())
    return pids


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where it has ended. Source: proc(5), statm."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 where it has ended. Source: proc(5), stat."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what a benchmark makes, with its own cache for clipbatch; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="clipbatch-benchmark-") as name:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        try:
            yield Path(name)
        finally:
            os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)
