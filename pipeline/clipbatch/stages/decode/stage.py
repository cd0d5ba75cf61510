"""The decode stage: sends each image to its decoder and keeps every slot in its place.

The share of a batch that CPU cores decode while DALI decodes the rest, by rules on the image.

Knows nothing of DALI, nor of how long anything takes.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from clipbatch.config import DecodeSettings, hardware
from clipbatch.stages.cuda import mark, stream_on
from clipbatch.stages.decode import pil
from clipbatch.stages.decode.cpu_decoders import ReducedDecoder, TorchvisionDecoder, reduction
from clipbatch.stages.decode.geometry import Geometry, Target, geometry_of, upright_size
from clipbatch.stages.decode.header import inspect
from clipbatch.stages.decode.pixels import DecodeJob, FastDecoder, blank, place, scatter
from clipbatch.types import Decoded, Encoded, Picture, PixelBatch, ReadBatch, Reject

if TYPE_CHECKING:
    from clipbatch.stages.decode.reference import OpenClipTransform


GIANT_PIXELS = 2**26
"""67 megapixels: larger images would fill the device's memory, which DALI never gives back, for the sake of a few."""


def goes_to_cpu(row_id: int, pixels: int, share: float) -> bool:
    """Whether a CPU core decodes the image: a giant, or one of `share` of the rows, spread evenly."""
    return pixels > GIANT_PIXELS or int((row_id + 1) * share) > int(row_id * share)


class CpuPool:
    """Threads that decode; used by all lanes of the decode stage at once."""

    def __init__(self, target: Target, *, threads: int) -> None:
        self._target = target
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        """End the threads; to be called when nothing is being decoded."""
        self._pool.shutdown()

    def start(self, work: list[tuple[FastDecoder, DecodeJob]], device: str) -> Callable[[Tensor], list[DecodeJob]]:
        """Begin to decode, each job with its decoder, which has no state.

        What is returned waits, places the images into a batch, and returns the jobs that failed.
        """
        target, jobs = self._target, [job for _, job in work]
        host_BCHW = blank(len(jobs), target.height, target.width, target.fill, "cpu", pinned=device != "cpu")
        going = [
            self._pool.submit(decoder.fill, host_BCHW, [replace(job, slot=at)])
            for at, (decoder, job) in enumerate(work)
        ]

        def finish(pixels_BCHW: Tensor) -> list[DecodeJob]:
            failed = [job for job, one in zip(jobs, going, strict=True) if one.result()]
            scatter(pixels_BCHW, [job.slot for job in jobs], host_BCHW)
            return failed

        return finish


T = TypeVar("T")
R = TypeVar("R")

SMALLEST_SIDE = 8
"""Smaller images go to Pillow: DALI's edges differ from Pillow's, which shows where a pixel becomes a patch."""
EXTREME_ASPECT = 8
"""Longer images go to Pillow, which resizes the kept region alone; torch would first make a strip of huge length."""


class Decode:
    """Called with a `ReadBatch`, by up to `threads` threads at a time."""

    def __init__(
        self,
        settings: DecodeSettings,
        target: Target,
        *,
        batch_size: int,
        device: str,
        threads: int | None = None,
    ) -> None:
        self._settings, self._target = settings, target
        self._batch_size, self._device = batch_size, device
        self._threads = settings.decode_threads or hardware.cores()
        self.threads = threads or (2 if settings.decoder == "dali" else self._threads)
        self._cores = CpuPool(target, threads=self._threads) if settings.decoder == "dali" else None
        self._torchvision, self._reduced = (make(target.interpolation) for make in (TorchvisionDecoder, ReducedDecoder))
        self._reference = self._open_clips()
        self._helpers = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        self._lanes: queue.SimpleQueue[tuple[FastDecoder | None, torch.cuda.Stream | None]] = queue.SimpleQueue()
        for _ in range(self.threads):
            self._lanes.put((self._fast_decoder(), stream_on(device)))

    def close(self) -> None:
        """End the threads; to be called when nothing is being decoded."""
        self._helpers.shutdown()
        if self._cores:
            self._cores.close()

    def _fast_decoder(self) -> FastDecoder | None:
        if self._settings.decoder == "torchvision":
            return self._torchvision
        if self._settings.decoder == "dali":
            from clipbatch.stages.decode.dali import DaliDecoder

            index = self._device.partition(":")[2] or "0"
            return DaliDecoder(
                batch_size=self._batch_size,
                interpolation=self._target.interpolation,
                device_id=int(index) if self._device.startswith("cuda") else None,
                threads=max(1, self._threads // self.threads),
                hw_decoder_load=self._settings.hw_decoder_load,
            )
        return None

    def _open_clips(self) -> OpenClipTransform | None:
        if self._settings.decoder != "open_clip":
            return None
        from clipbatch.stages.decode.reference import OpenClipTransform

        return OpenClipTransform(self._target)

    def __call__(self, batch: ReadBatch) -> PixelBatch:
        """Decode all slots; what cannot be decoded keeps a blank one."""
        decoder, stream = lane = self._lanes.get()
        try:
            with torch.cuda.stream(stream):
                pixels_BCHW, outcomes = self._decode(batch, decoder)
            return PixelBatch(
                source=batch.source, outcomes=tuple(outcomes), pixels_BCHW=pixels_BCHW, ready=mark(stream)
            )
        finally:
            self._lanes.put(lane)

    def _decode(self, batch: ReadBatch, decoder: FastDecoder | None) -> tuple[Tensor, list[Decoded | Reject | None]]:
        target = self._target
        pixels_BCHW = blank(self._batch_size, target.height, target.width, target.fill, self._device)
        outcomes: list[Decoded | Reject | None] = [None] * len(batch.slots)
        jobs: list[DecodeJob] = []
        others: list[tuple[FastDecoder, DecodeJob]] = []
        last_word: list[int] = []
        for slot, content in enumerate(batch.slots):
            if isinstance(content, Encoded):
                made = self._job(slot, batch.source.start + slot, content, decoder)
                if made is None:
                    last_word.append(slot)
                elif isinstance(made, Reject):
                    outcomes[slot] = made
                else:
                    chosen, job, outcomes[slot] = made
                    if chosen is decoder:
                        jobs.append(job)
                    else:
                        others.append((chosen, job))
            elif isinstance(content, Picture):
                last_word.append(slot)
            else:
                outcomes[slot] = content
        finish = self._cores.start(others, self._device) if self._cores and others else None
        if decoder is self._torchvision and self._device == "cpu":
            failed = self._shared_out(functools.partial(decoder.fill, pixels_BCHW), jobs)
        else:
            failed = decoder.fill(pixels_BCHW, jobs) if decoder and jobs else []
        if finish:
            failed += finish(pixels_BCHW)
        else:
            failed += [job for other, one in others for job in other.fill(pixels_BCHW, [one])]
        last_word += [job.slot for job in failed]

        def by_pillow(slots: list[int]) -> list[tuple[int, _Opened | Reject]]:
            return [(slot, self._by_pillow(batch.slots[slot])) for slot in slots]

        for slot, opened in self._shared_out(by_pillow, last_word):
            outcomes[slot] = opened if isinstance(opened, Reject) else opened.facts
            if isinstance(opened, _Opened):
                opened.put(pixels_BCHW, slot)
        return pixels_BCHW, outcomes

    def _shared_out(self, work: Callable[[list[T]], list[R]], items: list[T]) -> list[R]:
        """What `work` makes of all `items`, in any order: on a CPU in shares with the lanes that have no batch at the
        moment, beside a GPU with as many threads as decode. It must not touch the GPU, as other threads would copy in a
        stream that nobody waits for."""
        idle = self._lanes.qsize() if self._device == "cpu" else self._threads - 1
        shares = min(1 + idle, len(items))
        going = [self._helpers.submit(work, items[number::shares]) for number in range(1, shares)]
        return work(items[0::shares] if shares else []) + [result for one in going for result in one.result()]

    def _job(
        self, slot: int, row_id: int, content: Encoded, decoder: FastDecoder | None
    ) -> tuple[FastDecoder, DecodeJob, Decoded] | Reject | None:
        """A decoder, its job, and the outcome if that succeeds; or a Reject; or None, for Pillow."""
        header = inspect(content.data, self._settings.pixels) if decoder else None
        if decoder is None or header is None or header.kind not in decoder.kinds:
            return None
        orientation = header.orientation if self._settings.orientation == "upright" else 1
        width, height = upright_size(header.width, header.height, orientation)
        if width * height > self._settings.max_pixels:
            return pil.too_large(width, height, self._settings.max_pixels)
        shorter, longer = (width, height) if width < height else (height, width)
        if shorter < SMALLEST_SIDE or longer > EXTREME_ASPECT * shorter:
            return None
        geometry = geometry_of(header.height, header.width, orientation, self._target)
        if self._settings.jpeg_scale == "reduced" and header.kind in self._reduced.kinds and reduction(geometry) > 1:
            decoder = self._reduced
        elif self._cores and goes_to_cpu(row_id, width * height, self._settings.cpu_share):
            decoder = self._torchvision
            if header.kind not in decoder.kinds:
                return None
        decoded = Decoded(width=width, height=height, decoder=decoder.name)
        return decoder, DecodeJob(slot=slot, data=content.data, geometry=geometry), decoded

    def _by_pillow(self, content: Encoded | Picture | Reject | None) -> _Opened | Reject:
        assert isinstance(content, (Encoded, Picture))
        if self._reference:
            exact = self._reference.decode(content, self._settings)
            return exact if isinstance(exact, Reject) else _Opened(exact[0], None, exact[1])
        made = pil.decode(content, self._target, self._settings)
        return made if isinstance(made, Reject) else _Opened(*made)


class _Opened(NamedTuple):
    """What Pillow made of an image, on the CPU."""

    stored_CHW: Tensor
    geometry: Geometry | None
    """How it is to be turned; None: it is as the model takes it."""
    facts: Decoded

    def put(self, pixels_BCHW: Tensor, slot: int) -> None:
        if self.geometry is None:
            pixels_BCHW[slot].copy_(self.stored_CHW)
        else:
            place(pixels_BCHW, slot, self.stored_CHW, self.geometry)
