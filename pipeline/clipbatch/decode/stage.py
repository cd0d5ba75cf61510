"""The decode stage: sends each image to its decoder and keeps every slot in its place."""

from __future__ import annotations

import queue

import torch
from torch import Tensor

from clipbatch import hardware
from clipbatch.config import DecodeSettings
from clipbatch.decode import pil
from clipbatch.decode.cores import Cores, for_cores
from clipbatch.decode.geometry import Target, geometry_of, upright_size
from clipbatch.decode.inspect import inspect
from clipbatch.decode.pixels import FastDecoder, Job, blank, place
from clipbatch.types import Decoded, Encoded, PixelBatch, ReadBatch, Reject

SMALLEST_SIDE = 8
"""Smaller images go to Pillow: DALI's edges differ from Pillow's, which shows where a pixel becomes a patch."""
EXTREME_ASPECT = 8
"""Longer images go to Pillow, which resizes the kept region alone; torch would first make a strip of huge length."""


class Decode:
    """Called with a `ReadBatch`, by up to `threads` threads at a time."""

    def __init__(
        self, settings: DecodeSettings, target: Target, *, batch_size: int, device: str, threads: int | None = None
    ) -> None:
        self._settings, self._target = settings, target
        self._batch_size, self._device = batch_size, device
        self._threads = settings.decode_threads or hardware.cores()
        self.threads = threads or (2 if settings.decoder == "dali" else self._threads)
        self._cores = Cores(target, threads=self._threads) if settings.decoder == "dali" else None
        self._lanes: queue.SimpleQueue[tuple[FastDecoder | None, torch.cuda.Stream | None]] = queue.SimpleQueue()
        for _ in range(self.threads):
            stream = torch.cuda.Stream(device) if device.startswith("cuda") else None  # type: ignore[no-untyped-call]
            self._lanes.put((self._fast_decoder(), stream))

    def _fast_decoder(self) -> FastDecoder | None:
        if self._settings.decoder == "torchvision":
            from clipbatch.decode.torchvision import TorchvisionDecoder

            return TorchvisionDecoder(self._target.interpolation)
        if self._settings.decoder == "dali":
            from clipbatch.decode.dali import DaliDecoder

            index = self._device.partition(":")[2] or "0"
            return DaliDecoder(
                batch_size=self._batch_size,
                interpolation=self._target.interpolation,
                device_id=int(index) if self._device.startswith("cuda") else None,
                threads=max(1, self._threads // self.threads),
                hw_decoder_load=self._settings.hw_decoder_load,
            )
        return None

    def __call__(self, batch: ReadBatch) -> PixelBatch:
        """Decode all slots; what cannot be decoded keeps a blank one. On a GPU the pixels are complete on return."""
        decoder, stream = lane = self._lanes.get()
        try:
            with torch.cuda.stream(stream):
                made = self._decode(batch, decoder)
            if stream is not None:
                stream.synchronize()
            return made
        finally:
            self._lanes.put(lane)

    def _decode(self, batch: ReadBatch, decoder: FastDecoder | None) -> PixelBatch:
        target = self._target
        pixels_BCHW = blank(self._batch_size, target.height, target.width, target.fill, self._device)
        outcomes: list[Decoded | Reject | None] = [None] * len(batch.slots)
        jobs: dict[str, list[Job]] = {"dali": [], "torchvision": []}
        last_word: list[int] = []
        for slot, content in enumerate(batch.slots):
            if isinstance(content, Encoded):
                job, outcome = self._job(slot, batch.source.start + slot, content, decoder)
                outcomes[slot] = outcome
                if job and isinstance(outcome, Decoded):
                    jobs[outcome.decoder].append(job)
                elif outcome is None:
                    last_word.append(slot)
            else:
                outcomes[slot] = content
        finish = self._cores.start(jobs["torchvision"], self._device) if self._cores and jobs["torchvision"] else None
        failed = decoder.fill(pixels_BCHW, jobs[decoder.name]) if decoder and jobs[decoder.name] else []
        failed += finish(pixels_BCHW) if finish else []
        last_word += [job.slot for job in failed]
        for slot in last_word:
            outcomes[slot] = self._by_pillow(pixels_BCHW, slot, batch.slots[slot])
        return PixelBatch(source=batch.source, outcomes=tuple(outcomes), pixels_BCHW=pixels_BCHW)

    def _job(
        self, slot: int, row_id: int, content: Encoded, decoder: FastDecoder | None
    ) -> tuple[Job | None, Decoded | Reject | None]:
        """A job for the fast decoder with its outcome if that succeeds; or a Reject; or neither, for Pillow."""
        header = inspect(content.data) if decoder else None
        if decoder is None or header is None or header.kind not in decoder.kinds:
            return None, None
        orientation = header.orientation if self._settings.orientation == "upright" else 1
        width, height = upright_size(header.width, header.height, orientation)
        if width * height > self._settings.max_pixels:
            return None, pil.too_large(width, height, self._settings.max_pixels)
        shorter, longer = sorted((width, height))
        if shorter < SMALLEST_SIDE or longer > EXTREME_ASPECT * shorter:
            return None, None
        name = decoder.name
        if self._cores and for_cores(row_id, width * height, self._settings.cpu_share):
            if header.kind not in self._cores.kinds:
                return None, None
            name = self._cores.name
        geometry = geometry_of(header.height, header.width, orientation, self._target)
        decoded = Decoded(width=width, height=height, decoder=name)
        return Job(slot=slot, data=content.data, geometry=geometry), decoded

    def _by_pillow(self, pixels_BCHW: Tensor, slot: int, content: Encoded | Reject | None) -> Decoded | Reject:
        assert isinstance(content, Encoded)
        upright = self._settings.orientation == "upright"
        made = pil.decode(content.data, self._target, upright=upright, max_pixels=self._settings.max_pixels)
        if isinstance(made, Reject):
            return made
        stored_CHW, geometry, decoded = made
        place(pixels_BCHW, slot, stored_CHW, geometry)
        return decoded
