"""Decode with torchvision on the CPU: libjpeg-turbo, libpng and libwebp, then torch's own uint8 resize.

Agrees with open_clip's Pillow transform to within 1 of 255, since torch's antialiased resize of uint8 uses Pillow's
filters and fixed-point arithmetic (`aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.io import ImageReadMode

from clipbatch.decode.geometry import Geometry
from clipbatch.decode.pixels import Job, place
from clipbatch.types import DecoderName

_decode_image = torch.ops.image.decode_image.default
"""What `torchvision.io.decode_image` calls, after it has warned of an end that pyproject.toml's bound knows of."""


class TorchvisionDecoder:
    """One image after the other; the flow runs several of these at a time."""

    name: DecoderName = "torchvision"
    kinds = frozenset({"jpeg", "webp"})  # not PNG: torchvision 0.29 ends the process with SIGSEGV on damaged PNG data

    def __init__(self, interpolation: str) -> None:
        self._resize = getattr(torch.ops.aten, f"_upsample_{interpolation}2d_aa").default

    def fill(self, pixels_BCHW: Tensor, jobs: list[Job]) -> list[Job]:
        """Decode, resize and place each job's image; returns the jobs that failed."""
        failed = []
        for job in jobs:
            try:
                encoded = torch.frombuffer(job.data, dtype=torch.uint8)
                image_CHW = _decode_image(encoded, ImageReadMode.RGB.value, False)
                if image_CHW.shape[1:] != (job.geometry.y.source, job.geometry.x.source):
                    raise RuntimeError("the image is not of the size that its header states")
                stored_CHW = self._crop(image_CHW, job.geometry)
            except RuntimeError:
                failed.append(job)
            else:
                place(pixels_BCHW, job.slot, stored_CHW, job.geometry)
        return failed

    def _crop(self, image_CHW: Tensor, geometry: Geometry) -> Tensor:
        """Resize only up to the end of the crop, with the scale of the whole image, and cut what is before it."""
        y, x = geometry.y, geometry.x
        # Channels last by the batch's stride, too: torch then resizes twice as fast, to the same pixels.
        image_BCHW = image_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        size = [y.crop + y.kept, x.crop + x.kept]
        resized_BCHW = self._resize(image_BCHW, size, False, y.resized / y.source, x.resized / x.source)
        stored_CHW: Tensor = resized_BCHW[0, :, y.crop :, x.crop :]
        return stored_CHW
