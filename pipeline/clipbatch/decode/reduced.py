"""Decode big JPEGs at 1/2, 1/4 or 1/8 of their size: what the model looks at needs no 50 megapixels.

libjpeg leaves out the high frequencies of each 8 x 8 block (DCT scaling), which resizing would remove anyway; the rest
is resized with Pillow's filters as ever. Which scale is taken depends on the image's size alone.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipbatch.decode.geometry import Geometry
from clipbatch.decode.pil import RESAMPLING
from clipbatch.decode.pixels import Job, place
from clipbatch.pillow import rgb
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

    def fill(self, pixels_BCHW: Tensor, jobs: list[Job]) -> list[Job]:
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

    def _crop(self, job: Job) -> Tensor:
        y, x, by = job.geometry.y, job.geometry.x, reduction(job.geometry)
        with Image.open(io.BytesIO(job.data), formats=["JPEG"]) as image:
            if image.size != (x.source, y.source):
                raise ValueError("the image is not of the size that its header states")
            if image.draft("RGB", (x.source // by, y.source // by)) is None:
                raise ValueError("libjpeg is not asked for this one at another scale")
            (top, bottom), (left, right) = y.region, x.region
            box = (left / by, top / by, right / by, bottom / by)
            cropped = rgb(image).resize((x.kept, y.kept), self._resampling, box=box)
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)
