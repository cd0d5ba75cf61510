"""Runs stages in threads over bounded queues, keeps the order of items, and measures every wait.

A flow is a source of items and a list of stages. The threads of a stage take items in turn, and results leave a stage
in the order of its items, however long each item takes. Iterating over a `Flow` drives it. An exception in a stage ends
the flow; the iterator raises it, with a note that names the stage. The module knows nothing about the items.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

_END = object()
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of the flow."""

    name: str
    work: Callable[[Any], Any]
    # How many items are processed at the same time.
    threads: int = 1
    # How many more results may wait for the next stage.
    depth: int = 2


@dataclass(slots=True, kw_only=True)
class StageTimes:
    """Seconds, summed over the threads of a stage."""

    busy_s: float = 0.0
    # Waiting for the previous stage.
    starved_s: float = 0.0
    # Waiting for space in the queue to the next stage.
    blocked_s: float = 0.0


class Flow:
    """Runs `stages` over `source`. Iterate over it to get the results of the last stage, in order."""

    def __init__(self, source: Iterable[Any], stages: Sequence[Stage]) -> None:
        self._stop = threading.Event()
        self._started = time.perf_counter()
        self._runners: list[_Runner] = []
        upstream = iter(source)
        for stage in stages:
            runner = _Runner(stage, upstream, self._stop)
            self._runners.append(runner)
            upstream = runner.results()
        self._results = upstream
        for runner in self._runners:
            runner.start()

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._results
        finally:
            self._stop.set()

    def join(self) -> None:
        """Wait for the threads to end. Call it after the iteration has ended, and from none of them."""
        self._stop.set()
        for runner in self._runners:
            for thread in runner.threads:
                thread.join()

    def times(self) -> dict[str, dict[str, float]]:
        """By stage: busy, starved and blocked seconds, threads, and `load`, the busy share of its threads' time."""
        elapsed_s = max(time.perf_counter() - self._started, 1e-9)
        return {
            r.stage.name: {
                "busy_s": round(r.times.busy_s, 3),
                "starved_s": round(r.times.starved_s, 3),
                "blocked_s": round(r.times.blocked_s, 3),
                "threads": r.stage.threads,
                "load": round(r.times.busy_s / elapsed_s / r.stage.threads, 3),
            }
            for r in self._runners
        }


def bottleneck(times: dict[str, dict[str, float]]) -> str:
    """The name of the stage whose threads are busiest; the other stages wait for it."""
    return max(times, key=lambda name: times[name]["load"]) if times else ""


class _Runner:
    """The threads of a stage and its queue of results: a Future for each item, in the order of the items."""

    def __init__(self, stage: Stage, upstream: Iterator[Any], stop: threading.Event) -> None:
        self.stage = stage
        self.times = StageTimes()
        self._upstream = upstream
        self._stop = stop
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._ended = False
        self._queue: queue.Queue[Any] = queue.Queue(stage.threads + stage.depth)
        names = [f"{stage.name}-{number}" for number in range(stage.threads)]
        self.threads = [threading.Thread(target=self._loop, name=name, daemon=True) for name in names]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def results(self) -> Iterator[Any]:
        while (slot := self._get()) is not _END:
            yield slot.result()

    def _loop(self) -> None:
        while not self._stop.is_set():
            with self._turn:  # only one thread at a time takes an item and queues its Future
                if self._ended or self._stop.is_set():
                    return
                slot: Future[Any] = Future()
                start = time.perf_counter()
                try:
                    item = next(self._upstream)
                except StopIteration:
                    self._ended = True
                    self._put(_END)
                    return
                except BaseException as error:
                    self._ended = True
                    slot.set_exception(error)
                    self._put(slot)
                    self._put(_END)
                    return
                taken = time.perf_counter()
                self._put(slot)
                placed = time.perf_counter()
                self.times.starved_s += taken - start
                self.times.blocked_s += placed - taken
            self._work(item, slot)
            del item, slot  # otherwise an idle thread would keep a whole batch of pixels alive

    def _work(self, item: Any, slot: Future[Any]) -> None:
        start = time.perf_counter()
        try:
            result = self.stage.work(item)
        except BaseException as error:
            if hasattr(error, "add_note"):
                error.add_note(f"in stage {self.stage.name}")
            self._ended = True  # what comes next may depend on what this item has left undone
            slot.set_exception(error)
            return
        with self._counting:
            self.times.busy_s += time.perf_counter() - start
        slot.set_result(result)

    def _put(self, slot: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(slot, timeout=_POLL_S)
            except queue.Full:
                continue

    def _get(self) -> Any:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return _END
