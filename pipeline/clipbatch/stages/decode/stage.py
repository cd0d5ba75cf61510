"""The decode stage: decodes each image with the decoder that `choosing` names, and keeps every image in its slot.

With DALI, the CPU cores decode a share of each batch (`CpuPool`) while DALI decodes the rest. A rule on the image
decides who decodes it (its size or row number), never how long anything takes, so the same images always get the same
decoder.
"""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from clipbatch.config import DecodeSettings, hardware
from clipbatch.stages.ceilings import CORES, CUDA, ENGINES
from clipbatch.stages.cuda import mark, stream_on
from clipbatch.stages.decode import pil
from clipbatch.stages.decode.choosing import Chooser
from clipbatch.stages.decode.cpu_pool import CpuPool
from clipbatch.stages.decode.engines import ENGINE_SHARE, goes_to_engines
from clipbatch.stages.decode.geometry import Geometry, Target, geometry_of
from clipbatch.stages.decode.header import inspect
from clipbatch.stages.decode.pixels import DecodeJob, FastDecoder, blank, place
from clipbatch.types import Decoded, Encoded, Picture, PixelBatch, ReadBatch, Reject

if TYPE_CHECKING:
    from clipbatch.stages.decode.reference import OpenClipTransform


T = TypeVar("T")
R = TypeVar("R")


class Decode:
    """The decode stage. Called with a `ReadBatch`, by up to `threads` threads at a time."""

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
        self.batch_size, self._device = batch_size, device
        self._threads = settings.decode_threads or hardware.cores()
        lanes = 3 if device.startswith("cuda") else 2
        self.threads = threads or (lanes if settings.decoder == "dali" else self._threads)
        self.decoder = settings.decoder
        # Of JPEGs, for the GPU's JPEG engines.
        self.engine_share = settings.hw_decoder_load
        if self.engine_share is None and settings.decoder == "dali" and device.startswith("cuda"):
            self.engine_share = ENGINE_SHARE
        self._cores = CpuPool(target, threads=self._threads) if settings.decoder == "dali" else None
        self._choose = Chooser(settings, target)
        self._reference = self._open_clip_transform()
        self._helpers = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        # By way of decoding, seconds for which batches waited: for `_cores`, and in each lane.
        self._waited_s: list[dict[str, float]] = [{CORES: 0.0}]
        # A lane for each thread: a fast decoder and a CUDA stream.
        self._lanes: queue.SimpleQueue[tuple[FastDecoder | None, torch.cuda.Stream | None]] = queue.SimpleQueue()
        for _ in range(self.threads):
            self._lanes.put((self._fast_decoder(), stream_on(device)))

    def _fast_decoder(self) -> FastDecoder | None:
        if self._settings.decoder == "torchvision":
            return self._choose.torchvision
        if self._settings.decoder == "dali":
            from clipbatch.stages.decode.dali import DaliDecoder

            index = self._device.partition(":")[2] or "0"
            decoder = DaliDecoder(
                batch_size=self.batch_size,
                interpolation=self._target.interpolation,
                device_id=int(index) if self._device.startswith("cuda") else None,
                threads=self._threads,
                engines=self.engine_share is not None,
            )
            self._waited_s.append(decoder.waited_s)
            return decoder
        return None

    def _open_clip_transform(self) -> OpenClipTransform | None:
        if self._settings.decoder != "open_clip":
            return None
        from clipbatch.stages.decode.reference import OpenClipTransform

        return OpenClipTransform(self._target)

    def prime(self, files: list[bytearray]) -> None:
        """Let the pipelines of each lane decode full batches of the JPEGs `files`, before anything else: the first
        batch decides how much memory DALI takes, and how nvImageCodec divides work from then on."""
        for share in (1.0, 0.0):
            for _ in range(self.threads):  # each call takes the lane that has been idle for the longest time
                self.rate(files, share, batches=1)

    def rate(self, files: list[bytearray], share: float, batches: int = 4) -> float:
        """Images/s of one lane over full batches of the JPEGs `files`, with `share` of them for the JPEG engines.

        Raises: RuntimeError if some cannot be decoded.
        """
        target, jobs = self._target, list[DecodeJob]()
        for slot in range(self.batch_size):
            data = files[slot % len(files)]
            if (header := inspect(data)) is None:
                raise RuntimeError("a sound JPEG is not taken for one")
            geometry = geometry_of(header.height, header.width, header.orientation, target)
            engines = goes_to_engines(slot, share)
            jobs.append(DecodeJob(slot, data, geometry, engines))
        decoder, stream = lane = self._lanes.get()
        try:
            assert decoder
            with torch.cuda.stream(stream):
                pixels_BCHW = blank(self.batch_size, target.height, target.width, target.fill, self._device)
                for timed in (1, batches):  # the first one warms up
                    begun = time.perf_counter()
                    if any(decoder.fill(pixels_BCHW, jobs) for _ in range(timed)):
                        raise RuntimeError("sound JPEGs cannot be decoded")
                    if ready := mark(stream):
                        ready.synchronize()
            return batches * self.batch_size / (time.perf_counter() - begun)
        finally:
            self._lanes.put(lane)

    def waited_s(self) -> dict[str, float]:
        """On a GPU, seconds for which batches waited for each way of decoding, so far, by its name in `ceilings`."""
        if not self._device.startswith("cuda"):
            return {}
        total = dict.fromkeys((ENGINES, CUDA, CORES), 0.0)
        for waited_s in self._waited_s:
            for way, seconds in waited_s.items():
                total[way] += seconds
        return total

    def close(self) -> None:
        """End the threads, and give back what the lanes hold. No batch may be in work."""
        self._helpers.shutdown()
        if self._cores:
            self._cores.close()
        for _ in range(self.threads):
            self._lanes.get()

    def __call__(self, batch: ReadBatch) -> PixelBatch:
        """Decode all slots. The slot of an image that cannot be decoded stays blank."""
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
        pixels_BCHW = blank(self.batch_size, target.height, target.width, target.fill, self._device)
        jobs, for_cpu, for_pillow, outcomes = self._choose(batch, decoder, self.engine_share)
        finish = self._cores.start(for_cpu, self._device) if self._cores and for_cpu else None
        if decoder is self._choose.torchvision and self._device == "cpu":
            failed = self._share_out(functools.partial(decoder.fill, pixels_BCHW), jobs)
        else:
            failed = decoder.fill(pixels_BCHW, jobs) if decoder and jobs else []
        if finish:
            begun = time.perf_counter()
            failed += finish(pixels_BCHW)
            self._waited_s[0][CORES] += time.perf_counter() - begun
        else:
            failed += [job for other, one in for_cpu for job in other.fill(pixels_BCHW, [one])]
        for_pillow += [job.slot for job in failed]

        def by_pillow(slots: list[int]) -> list[tuple[int, _Opened | Reject]]:
            return [(slot, self._by_pillow(batch.slots[slot])) for slot in slots]

        for slot, picture in self._share_out(by_pillow, for_pillow):
            outcomes[slot] = picture if isinstance(picture, Reject) else picture.facts
            if isinstance(picture, _Opened):
                picture.put(pixels_BCHW, slot)
        return pixels_BCHW, outcomes

    def _share_out(self, work: Callable[[list[T]], list[R]], items: list[T]) -> list[R]:
        """The results of `work` for all `items`, in any order, computed in several threads.

        On a CPU, as many threads help as there are lanes without a batch; with a GPU, all decoding threads help. `work`
        must not use the GPU: other threads would copy in a stream for which nobody waits.
        """
        idle = self._lanes.qsize() if self._device == "cpu" else self._threads - 1
        shares = min(1 + idle, len(items))
        futures = [self._helpers.submit(work, items[number::shares]) for number in range(1, shares)]
        return work(items[0::shares] if shares else []) + [result for future in futures for result in future.result()]

    def _by_pillow(self, content: Encoded | Picture | Reject | None) -> _Opened | Reject:
        assert isinstance(content, (Encoded, Picture))
        if self._reference:
            exact = self._reference.decode(content, self._settings)
            return exact if isinstance(exact, Reject) else _Opened(exact[0], None, exact[1])
        result = pil.decode(content, self._target, self._settings)
        return result if isinstance(result, Reject) else _Opened(*result)


class _Opened(NamedTuple):
    """An image that Pillow has decoded, on the CPU."""

    stored_CHW: Tensor
    # How to turn and place it. None: it is the model's input already.
    geometry: Geometry | None
    facts: Decoded

    def put(self, pixels_BCHW: Tensor, slot: int) -> None:
        if self.geometry is None:
            pixels_BCHW[slot].copy_(self.stored_CHW)
        else:
            place(pixels_BCHW, slot, self.stored_CHW, self.geometry)
