"""Decode big JPEGs at 1/2, 1/4 or 1/8 of their size: what the model looks at needs no 50 megapixels.

libjpeg leaves out the high frequencies of each 8 x 8 block (DCT scaling), which resizing would remove anyway; the rest
is resized with Pillow's filters as ever. Which scale is taken depends on the image's size alone.

Decode with torchvision on the CPU: libjpeg-turbo, libpng and libwebp, then torch's own uint8 resize.

Agrees with open_clip's Pillow transform to within 1 of 255, since torch's antialiased resize of uint8 uses Pillow's
filters and fixed-point arithmetic (`aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h`).
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode

from clipbatch.stages.decode.geometry import Geometry
from clipbatch.stages.decode.pil import RESAMPLING
from clipbatch.stages.decode.pixels import DecodeJob, place
from clipbatch.stages.pillow import unrestricted
from clipbatch.types import DecoderName

SPARE = 2
"""Pixels that are still decoded for each one that is kept, on both axes: the filter has to have something to do."""


def reduction(geometry: Geometry) -> int:
    """How many times smaller the image may be decoded: 1, 2, 4 or 8."""
    shrinks = min(axis.source / axis.resized for axis in (geometry.y, geometry.x))
    return next(by for by in (8, 4, 2, 1) if shrinks >= by * SPARE or by == 1)


class ReducedDecoder:
    """For JPEGs that `inspect` vouches for and `reduction` is more than 1 for. Has no state."""

    name: DecoderName = "pil"
    kinds = frozenset({"jpeg"})

    def __init__(self, interpolation: str) -> None:
        self._resampling = RESAMPLING[interpolation]

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode, resize and place each job's image; returns the jobs that failed."""
        failed = []
        for job in jobs:
            try:
                stored_CHW = self._crop(job)
            except Exception:  # Pillow raises whatever its parsers stumble over
                failed.append(job)
            else:
                place(pixels_BCHW, job.slot, stored_CHW, job.geometry)
        return failed

    def _crop(self, job: DecodeJob) -> Tensor:
        y, x, by = job.geometry.y, job.geometry.x, reduction(job.geometry)
        with unrestricted(), Image.open(io.BytesIO(job.data), formats=["JPEG"]) as image:
            if image.size != (x.source, y.source):
                raise ValueError("the image is not of the size that its header states")
            if image.draft("RGB", (x.source // by, y.source // by)) is None:
                raise ValueError("libjpeg is not asked for this one at another scale")
            (top, bottom), (left, right) = y.region, x.region
            box = (left / by, top / by, right / by, bottom / by)
            cropped = image.convert("RGB").resize((x.kept, y.kept), self._resampling, box=box)
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


_decode_image = torch.ops.image.decode_image.default
"""What `torchvision.io.decode_image` calls, after it has warned of an end that pyproject.toml's bound knows of."""


class TorchvisionDecoder:
    """One image after the other; the flow runs several of these at a time."""

    name: DecoderName = "torchvision"
    kinds = frozenset({"jpeg", "webp"})  # not PNG: torchvision 0.29 ends the process with SIGSEGV on damaged PNG data

    def __init__(self, interpolation: str) -> None:
        self._resize = getattr(torch.ops.aten, f"_upsample_{interpolation}2d_aa").default

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
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
