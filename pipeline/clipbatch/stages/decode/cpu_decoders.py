"""The fast decoders for CPU cores.

`ReducedDecoder` decodes large JPEGs at 1/2, 1/4 or 1/8 of their size, since a model needs no 50 megapixels. libjpeg
leaves out the high frequencies of each 8 x 8 block (DCT scaling), which resizing would remove anyway. Pillow then
resizes the rest with its usual filters. The scale depends only on the size of the image.

`TorchvisionDecoder` uses libjpeg-turbo and libwebp, then torch's own resize of uint8. It agrees with open_clip's Pillow
transform to within 1 of 255, since torch's antialiased resize uses Pillow's filters and fixed-point arithmetic
(`aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h`).
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

# On both axes, at least this many pixels are decoded for each pixel after resizing, so that the filter has an effect.
SPARE = 2


def reduction(geometry: Geometry) -> int:
    """By how much the decoded image may be smaller than the stored one: 1, 2, 4 or 8 times."""
    shrinks = min(axis.source / axis.resized for axis in (geometry.y, geometry.x))
    return next(by for by in (8, 4, 2, 1) if shrinks >= by * SPARE or by == 1)


class ReducedDecoder:
    """For JPEGs whose header `inspect` accepts and whose `reduction` is more than 1. It keeps no state."""

    name: DecoderName = "pil"
    kinds = frozenset({"jpeg"})

    def __init__(self, interpolation: str) -> None:
        self._resampling = RESAMPLING[interpolation]

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode and resize the image of each job and put it into its slot. Returns the jobs that failed."""
        failed = []
        for job in jobs:
            try:
                stored_CHW = self._crop(job)
            except Exception:  # Pillow's parsers raise all kinds of exceptions for damaged files
                failed.append(job)
            else:
                place(pixels_BCHW, job.slot, stored_CHW, job.geometry)
        return failed

    def _crop(self, job: DecodeJob) -> Tensor:
        y, x, by = job.geometry.y, job.geometry.x, reduction(job.geometry)
        with unrestricted(), Image.open(io.BytesIO(job.data), formats=["JPEG"]) as image:
            if image.size != (x.source, y.source):
                raise ValueError("the image does not have the size in its header")
            if image.draft("RGB", (x.source // by, y.source // by)) is None:
                raise ValueError("Pillow cannot decode this one at another scale")
            (top, bottom), (left, right) = y.region, x.region
            box = (left / by, top / by, right / by, bottom / by)
            cropped = image.convert("RGB").resize((x.kept, y.kept), self._resampling, box=box)
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


# The operator that `torchvision.io.decode_image` calls. The function itself first warns that it will be removed; the
# version bound in pyproject.toml keeps it available.
_decode_image = torch.ops.image.decode_image.default


class TorchvisionDecoder:
    """Decodes one image after the other. Several threads of the flow use it at the same time."""

    name: DecoderName = "torchvision"
    # Without PNG: torchvision 0.29 ends the process with SIGSEGV on damaged PNG data.
    kinds = frozenset({"jpeg", "webp"})

    def __init__(self, interpolation: str) -> None:
        self._resize = getattr(torch.ops.aten, f"_upsample_{interpolation}2d_aa").default

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode and resize the image of each job and put it into its slot. Returns the jobs that failed."""
        failed = []
        for job in jobs:
            try:
                encoded = torch.frombuffer(job.data, dtype=torch.uint8)
                image_CHW = _decode_image(encoded, ImageReadMode.RGB.value, False)
                if image_CHW.shape[1:] != (job.geometry.y.source, job.geometry.x.source):
                    raise RuntimeError("the image does not have the size in its header")
                stored_CHW = self._crop(image_CHW, job.geometry)
            except RuntimeError:
                failed.append(job)
            else:
                place(pixels_BCHW, job.slot, stored_CHW, job.geometry)
        return failed

    def _crop(self, image_CHW: Tensor, geometry: Geometry) -> Tensor:
        """The crop of `image_CHW`. Resizes only up to the end of the crop, at the scale of the whole image, and cuts
        off what is before the crop."""
        y, x = geometry.y, geometry.x
        # With channels last in the batch's strides too, torch resizes twice as fast, to the same pixels.
        image_BCHW = image_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        size = [y.crop + y.kept, x.crop + x.kept]
        resized_BCHW = self._resize(image_BCHW, size, False, y.resized / y.source, x.resized / x.source)
        stored_CHW: Tensor = resized_BCHW[0, :, y.crop :, x.crop :]
        return stored_CHW
