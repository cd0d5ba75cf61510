"""Which ceiling a worker has reached: what its images wait for.

    engines         the GPU's JPEG engines
    CUDA decoding   the rest of the GPU's JPEG decoder
    cores           the CPU cores of the worker
    lock            Python's lock (the GIL), which one thread of a process has at a time
    encoder         the model
    disk            where the images are, and where the parts go
    network         the same in a store or on the web

The busiest stage alone does not tell: every stage slows down where the cores are all busy, or while others have the
lock. So a `Meter` measures how busy both are. The cores are judged by the CPU time of the process. The lock cannot be
asked who has it. So a thread sleeps for some milliseconds at a time, and counts how often it wakes up late, because
another thread has the lock. The time for which the kernel had no core for it does not count. Times of less than
`_LATE_S` are left out, so it is a lower bound.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Mapping
from io import FileIO

from clipbatch.config import hardware
from clipbatch.stages.flow import bottleneck

ENGINES, CUDA, CORES, LOCK = "engines", "CUDA decoding", "cores", "lock"
# Shares of the time from which on the cores or the lock are what everything waits for.
_BUSY_CORES, _BUSY_LOCK = 0.9, 0.75
# A thread that wakes up later than this has waited for the lock; the kernel alone takes a tenth of that.
_LATE_S = 0.0005
# A look at the lock after each of these.
_SLEEP_S = (0.01, 0.03)
_OF_STAGE = {
    "read": "disk",
    "recall": "disk",
    "write": "disk",
    "decode": CORES,
    "encode": "encoder",
    "score": "encoder",
}


class Meter:
    """Measures cores and lock while its context is entered."""

    def __init__(self) -> None:
        self._cpu_s = self._seconds = 0.0
        self._looks = self._late = 0
        # The CPU time and the time at the beginning of the context; None outside.
        self._since: tuple[float, float] | None = None

    def __enter__(self) -> Meter:
        self._stop = threading.Event()
        self._since = time.process_time(), time.perf_counter()
        self._thread = threading.Thread(target=self._look, args=(self._stop,), name="meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1)  # it sleeps for ever where the clock runs backwards, and nobody needs its end
        self._cpu_s, self._seconds = self._so_far()
        self._since = None

    def _so_far(self) -> tuple[float, float]:
        if (since := self._since) is None:
            return self._cpu_s, self._seconds
        return self._cpu_s + time.process_time() - since[0], self._seconds + time.perf_counter() - since[1]

    def _look(self, stop: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            kernel = None
            with contextlib.suppress(OSError):
                kernel = stack.enter_context(open("/proc/thread-self/schedstat", "rb", buffering=0))
            while not stop.is_set():
                sleep_s = random.uniform(*_SLEEP_S)
                begun, queued_s = time.perf_counter(), _queued_s(kernel)
                time.sleep(sleep_s)
                late_s = time.perf_counter() - begun - sleep_s
                self._late += late_s > _LATE_S and late_s - (_queued_s(kernel) - queued_s) > _LATE_S
                self._looks += 1

    def figures(self) -> dict[str, float]:
        """`cpu_load`: the busy share of the cores that this process may use. `lock_load`: the share of the time for
        which another thread had the lock."""
        cpu_s, seconds = self._so_far()
        return {
            "cpu_load": round(cpu_s / max(seconds, 1e-9) / hardware.cores(), 3),
            "lock_load": round(self._late / max(1, self._looks), 3),
        }


def _queued_s(kernel: FileIO | None) -> float:
    """For how long this thread has waited for a core so far, in seconds (Linux, sched-stats.rst); 0 if unknown."""
    return 0.0 if kernel is None else int(os.pread(kernel.fileno(), 64, 0).split()[1]) / 1e9


def ceiling(
    times: dict[str, dict[str, float]], loads: Mapping[str, float], decoding_s: Mapping[str, float], *, remote: bool
) -> str:
    """The ceiling of a worker, or the name of a stage; '' if it has done nothing.

    times: `Flow.times`. loads: `Meter.figures`. decoding_s: on a GPU, seconds for which batches waited for each way of
    decoding. remote: whether images come from a store or the web.
    """
    stage = bottleneck(times)
    if not stage:
        return ""
    if loads["cpu_load"] >= _BUSY_CORES:
        return CORES
    if loads["lock_load"] >= _BUSY_LOCK:
        return LOCK
    if stage == "decode" and any(decoding_s.values()):
        return max(decoding_s, key=lambda way: decoding_s[way])
    return "network" if stage == "read" and remote else _OF_STAGE.get(stage, stage)
