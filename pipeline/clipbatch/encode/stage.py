"""The encode stage: normalise a batch of pixels and run the image tower on it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from clipbatch import hardware
from clipbatch.encode.model import DTYPES, Model
from clipbatch.types import EmbeddedBatch, PixelBatch


class Encode:
    """Called with a `PixelBatch`, by up to `threads` threads at a time.

    On a CPU each core encodes a batch of its own with one thread: nothing waits at a barrier inside a layer, and
    decoding threads take turns with encoding ones at the scheduler's grain.
    """

    def __init__(self, model: Model, *, precision: str, device: str) -> None:
        model.cast(precision, device)
        self._module, self._dtype = model.module, DTYPES[precision]
        self._mean_C11 = torch.tensor(model.mean, device=device).view(3, 1, 1) * 255
        self._std_C11 = torch.tensor(model.std, device=device).view(3, 1, 1) * 255
        self.threads = 1 if device.startswith("cuda") else hardware.cores()
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None  # type: ignore[no-untyped-call]
        if self._stream is None:
            torch.set_num_threads(1)

    def __call__(self, batch: PixelBatch) -> EmbeddedBatch:
        with torch.cuda.stream(self._stream):
            image_BD = self.embed(batch.pixels_BCHW)
        if self._stream is not None:
            self._stream.synchronize()
        return EmbeddedBatch(source=batch.source, outcomes=batch.outcomes, image_BD=image_BD)

    @torch.inference_mode()
    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 RGB pixels -> `image_BD`, float32, unit length."""
        normal_BCHW = ((pixels_BCHW.float() - self._mean_C11) / self._std_C11).to(self._dtype)
        normal_BCHW = normal_BCHW.contiguous(memory_format=torch.channels_last)
        image_BD: Tensor = self._module.encode_image(normal_BCHW)
        return functional.normalize(image_BD.float(), dim=-1)
