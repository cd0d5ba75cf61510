"""What all decoders use: a job for one image, and functions that put resized pixels into the slots of a batch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipbatch.stages.decode.geometry import Geometry
from clipbatch.types import DecoderName


class DecodeJob(NamedTuple):
    """One image for a fast decoder. One is made for each image, and a tuple takes a third of a dataclass's time."""

    slot: int
    data: bytearray
    geometry: Geometry
    # On a GPU: whether its JPEG engines decode the image, or else CUDA does.
    engines: bool = False


class FastDecoder(Protocol):
    """A decoder for images whose header `inspect` accepts."""

    name: DecoderName
    # The kinds of image that it decodes.
    kinds: frozenset[str]

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode and resize the image of each job and put it into its slot. Returns the jobs that failed."""


def place(pixels_BCHW: Tensor, slot: int, stored_CHW: Tensor, geometry: Geometry) -> None:
    """Turn a resized crop upright and copy it into its slot, inside any padding."""
    turned_CHW = stored_CHW
    flips = [axis for axis, flipped in zip((1, 2), geometry.flips, strict=True) if flipped]
    if flips:
        turned_CHW = turned_CHW.flip(flips)
    if geometry.transposed:
        turned_CHW = turned_CHW.transpose(1, 2)
    height, width = turned_CHW.shape[1:]
    top, left = geometry.top, geometry.left
    pixels_BCHW[slot, :, top : top + height, left : left + width].copy_(turned_CHW, non_blocking=True)


def scatter(pixels_BCHW: Tensor, slots: list[int], crops_BCHW: Tensor) -> None:
    """Copy crops of the batch's size into `slots`. On a GPU this does not wait, if the crops are there or pinned."""
    index = torch.tensor(slots)
    if pixels_BCHW.is_cuda:
        index = index.pin_memory().to(pixels_BCHW.device, non_blocking=True)
    pixels_BCHW.index_copy_(0, index, crops_BCHW.to(pixels_BCHW.device, non_blocking=True))


def blank(batch_size: int, height: int, width: int, fill: int, device: str, *, pinned: bool = False) -> Tensor:
    """A batch of images in the colour `fill`: uint8, shape BCHW, channels last in memory."""
    shape = (batch_size, height, width, 3)
    empty = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned).permute(0, 3, 1, 2)
    return empty.fill_(fill)
