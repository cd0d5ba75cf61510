"""Decode in a process that may die, so that an image that crashes a decoder does not take the service with it.

The process stays warm and decodes several batches at the same time; pixels come back through memory that both share.
When it dies, another one, which waits, takes its place. The images of the batches that the dead one had in hand are
decoded one by one in a third process: the image that kills that one gets status `crashed`, all others get their pixels.
The same bytes are not tried again.

For the CPU only: a GPU's decoder leaves its pixels on the GPU, in the memory of its own process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, TimeoutError
from typing import Any

from torch import Tensor

from clipbatch.config import DecodeSettings
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import ClipbatchError
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.decode.pixels import blank
from clipbatch.types import Decoded, Encoded, ItemBatch, PixelBatch, ReadBatch, Reject
from clipbatch.workers.child import Child, raise_failure

# Within which a process must have loaded its libraries.
_START_S = 300.0
# Images that have killed a process and are not tried again.
_MAX_KILLERS = 1024
# What a lane keeps of memory between batches, at most.
_LANE_BYTES = 2**26
Slot = Encoded | Reject | None
Outcome = Decoded | Reject | None


class DecodeProcess:
    """Stands in for `stages.decode.Decode`: called with a `ReadBatch`, by up to `threads` threads at a time."""

    def __init__(self, settings: DecodeSettings, target: Target, *, batch_size: int, threads: int) -> None:
        """Start the processes; returns when the first one can decode, so that no request waits for that.

        Raises: ClipbatchError if it cannot be started.
        """
        self.threads = threads
        self._target, self._batch_size = target, batch_size
        self._batch_s, self._alone_s = settings.worker_timeout, settings.decode_timeout
        self._arguments = (
            json.dumps(dataclasses.asdict(settings)),
            json.dumps(dataclasses.asdict(target)),
            str(batch_size),
        )
        # By the digest of their bytes, the oldest first.
        self._killers: dict[bytes, Reject] = {}
        self._changing, self._suspecting, self._closed = threading.Lock(), threading.Lock(), False
        self._fds = [os.memfd_create(f"clipbatch-lane-{number}") for number in range(threads + 1)]
        self._lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(threads):
            self._lanes.put(number)
        self._process, self._spare = (_Process(self._arguments, self._fds[:-1]) for _ in range(2))
        self._probe = _Process(self._arguments, self._fds[-1:])
        self._process.wait_until_ready()

    def __call__(self, batch: ReadBatch) -> PixelBatch:
        """Decode all slots; what cannot be decoded keeps a blank one."""
        target = self._target
        pixels_BCHW = blank(self._batch_size, target.height, target.width, target.fill, "cpu")
        slots: list[Slot] = []
        for slot in batch.slots:
            assert slot is None or isinstance(slot, (Encoded, Reject)), "only encoded images go to another process"
            slots.append(self._known(slot))
        lane = self._lanes.get()
        try:
            outcomes = self._decoded(lane, batch.source, slots, pixels_BCHW)
        finally:
            self._lanes.put(lane)
        return PixelBatch(source=batch.source, outcomes=tuple(outcomes), pixels_BCHW=pixels_BCHW)

    def close(self) -> None:
        """End the processes."""
        with self._changing:
            self._closed = True
            for process in (self._process, self._spare, self._probe):
                process.close()
            for fd in self._fds:
                os.close(fd)
            self._fds = []

    def _decoded(self, lane: int, source: ItemBatch, slots: list[Slot], pixels_BCHW: Tensor) -> Sequence[Outcome]:
        process = self._living()
        try:
            answer = process.decode(lane, self._fds[lane], source.start, slots, self._batch_s)
        except EOFError:
            return self._one_by_one(lane, source, slots, pixels_BCHW)
        return _collect(self._fds[lane], answer, slots, pixels_BCHW)

    def _one_by_one(self, lane: int, source: ItemBatch, slots: list[Slot], pixels_BCHW: Tensor) -> list[Outcome]:
        """Decode suspects alone, in a process that takes nothing else, until one kills it. Those after that one are a
        batch again, so that they need not wait until the next process has started."""
        outcomes: list[Outcome] = []
        fd = self._fds[-1]
        with self._suspecting:
            for number, slot in enumerate(slots):
                slot = self._known(slot)  # another batch may have had the same image
                if not isinstance(slot, Encoded):
                    outcomes.append(slot)
                    continue
                try:
                    answer = self._probe.decode(0, fd, source.start + number, [slot], self._alone_s)
                except EOFError as error:
                    reject = Reject(status=self._probe.verdict, error=str(error))
                    outcomes.append(reject)
                    self._killers[hashlib.sha256(slot.data).digest()] = reject
                    while len(self._killers) > _MAX_KILLERS:
                        del self._killers[next(iter(self._killers))]
                    self._probe = self._instead_of(self._probe, [fd])
                    break
                outcomes += _collect(fd, answer, [slot], pixels_BCHW[number : number + 1])
        done = len(outcomes)
        if rest := [self._known(slot) for slot in slots[done:]]:
            following = dataclasses.replace(source, start=source.start + done)
            outcomes += self._decoded(lane, following, rest, pixels_BCHW[done:])
        return outcomes

    def _known(self, slot: Slot) -> Slot:
        """`slot`, or what became of the same bytes when they killed a process."""
        if not self._killers or not isinstance(slot, Encoded):
            return slot
        return self._killers.get(hashlib.sha256(slot.data).digest(), slot)

    def _living(self) -> _Process:
        with self._changing:
            if self._process.ended:
                self._process, self._spare = self._spare, self._instead_of(self._process, self._fds[:-1])
            return self._process

    def _instead_of(self, dead: _Process, fds: list[int]) -> _Process:
        """Start a process in place of `dead`."""
        dead.close()
        if self._closed:
            raise ClipbatchError("the service ends")
        return _Process(self._arguments, fds)


class _Process:
    """One process, from its start to its death."""

    def __init__(self, arguments: tuple[str, ...], fds: list[int]) -> None:
        self._child = Child("clipbatch.workers.decode_main", *arguments, *map(str, fds), pass_fds=fds)
        self._ready, self._began = threading.Event(), False
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._death: str | None = None
        self._slow: str | None = None
        threading.Thread(target=self._listen, name="decode-process", daemon=True).start()

    @property
    def ended(self) -> bool:
        return self._death is not None

    @property
    def verdict(self) -> Any:
        """The status of the image that this process, which is dead, was alone with."""
        return "timeout" if self._slow else "crashed"

    def wait_until_ready(self) -> None:
        """Return when the process can decode, or could and has died. Raises: ClipbatchError if it cannot start."""
        if not self._ready.wait(_START_S):
            self._child.kill()
        if not self._began:
            log = "\n".join(self._child.log())
            raise ClipbatchError(f"the process that decodes cannot start; its last words:\n{log}")

    def decode(self, lane: int, fd: int, start: int, slots: Sequence[Slot], timeout_s: float) -> list[Any]:
        """What became of each of `slots`, whose pixels are in `fd` then. Raises: EOFError where the process dies."""
        sizes = [len(slot.data) if isinstance(slot, Encoded) else None for slot in slots]
        _fill(fd, [slot.data for slot in slots if isinstance(slot, Encoded)])
        future: Future[Any] = Future()
        self.wait_until_ready()
        with self._lock:
            if self._death is not None:
                raise EOFError(self._death)
            self._waiting[lane] = future
        self._child.send({"lane": lane, "start": start, "sizes": sizes})
        try:
            outcomes: list[Any] = future.result(timeout_s)
        except TimeoutError:  # of concurrent.futures, which is another one before Python 3.11
            self._slow = f"decoding it took longer than {timeout_s:g} s"
            self._child.kill()
            future.exception()
            raise EOFError(self._slow) from None
        return outcomes

    def close(self) -> None:
        self._child.close()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError):
            self._child.receive()
            self._began = True
            self._ready.set()
            while True:
                answer = self._child.receive()
                with self._lock:
                    future = self._waiting.pop(answer["lane"])
                try:
                    raise_failure(answer.get("failure"))
                except ClipbatchError as error:
                    future.set_exception(error)
                else:
                    future.set_result(answer["outcomes"])
        death = f"decoding it ends a process {self._child.how_it_ended()}"
        with self._lock:
            self._death = death
            waiting, self._waiting = self._waiting, {}
        self._ready.set()
        for future in waiting.values():
            future.set_exception(EOFError(death))


def _fill(fd: int, images: list[bytearray]) -> None:
    """Write `images` one after another into the memory file `fd`."""
    if os.fstat(fd).st_size > _LANE_BYTES:
        os.ftruncate(fd, 0)
    for image, at in zip(images, itertools.accumulate(map(len, images), initial=0), strict=False):
        view, written = memoryview(image), 0
        while written < len(image):
            written += os.pwrite(fd, view[written:], at + written)


def _collect(fd: int, answer: list[Any], slots: Sequence[Slot], pixels_BCHW: Tensor) -> list[Outcome]:
    """Copy the pixels out of `fd`; returns the outcomes, with the rejects of slots that had no bytes."""
    some_BHWC = pixels_BCHW.permute(0, 2, 3, 1)[: len(slots)]
    view, got = some_BHWC.numpy().data.cast("B"), 0
    while got < len(view):
        count = os.preadv(fd, [view[got:]], got)
        if not count:
            raise EOFError("the memory that is shared with the process that decodes is too short")
        got += count
    return [
        slot if not isinstance(slot, Encoded) else _outcome(facts) for slot, facts in zip(slots, answer, strict=True)
    ]


def _outcome(facts: JsonObject) -> Outcome:
    return Decoded(**facts) if "decoder" in facts else Reject(**facts)
