"""Computes from an image's size which part of it the model gets, and how that part is resized.

The rules are those of open_clip's transforms (`open_clip/transform.py`, 3.3.0): `shortest` is torchvision's Resize and
CenterCrop, `longest` is ResizeKeepRatio and CenterCropOrPad, `squash` is a Resize to the exact size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

ResizeMode = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The input that the model takes, as read from the loaded model."""

    height: int
    width: int
    resize_mode: ResizeMode
    interpolation: Literal["bicubic", "bilinear"]
    # The value of padding pixels, 0 to 255, in mode `longest`.
    fill: int

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Target:
        """facts: `Model.facts`, or what `model.json` keeps of them."""
        return cls(**{name: facts[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a resize followed by a crop or padding, in pixels."""

    # Length before resizing.
    source: int
    # Length after resizing the whole axis.
    resized: int
    # The first resized pixel that is kept.
    crop: int
    # How many resized pixels are kept. Fewer than the target has only if the image is padded.
    kept: int

    @property
    def region(self) -> tuple[float, float]:
        """The kept part in source pixels. Resizing it to `kept` pixels gives the same as resizing all and cropping."""
        scale = self.source / self.resized
        return self.crop * scale, (self.crop + self.kept) * scale

    def mirrored(self) -> Axis:
        """The same crop on an axis that will be flipped after resizing."""
        return replace(self, crop=self.resized - self.crop - self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How the stored image is resized and cropped, and how the result is then turned upright."""

    # The axes of the stored image.
    y: Axis
    x: Axis
    # Padding pixels above and left of the upright result; 0 except in mode `longest`.
    top: int
    left: int
    # EXIF orientation (Exif 2.3, tag 0x0112), 1 to 8, that is undone after resizing. 1: nothing to do.
    orientation: int
    # Whether the resized crop is the model's input already: it needs neither turning nor padding.
    plain: bool = field(init=False, compare=False)
    # In stored pixels, where the crop begins (y, x) and ends; then its size after resizing.
    box: tuple[float, float, float, float, int, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        (top, bottom), (left, right) = self.y.region, self.x.region
        object.__setattr__(self, "plain", self.orientation == 1 and self.top == self.left == 0)
        object.__setattr__(self, "box", (top, left, bottom, right, self.y.kept, self.x.kept))

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether the stored y and x axes have to be flipped."""
        return self.orientation in (3, 4, 6, 7), self.orientation in (2, 3, 7, 8)

    @property
    def transposed(self) -> bool:
        """Whether the stored axes have to be swapped."""
        return self.orientation >= 5


@functools.lru_cache(maxsize=4096)  # many images share a few sizes, and a GPU often waits for Python's lock
def geometry_of(height: int, width: int, orientation: int, target: Target) -> Geometry:
    """The geometry of a stored image of `height` x `width` pixels.

    The crop is computed for the upright image and then mapped back to the stored one. If the crop cannot be centred
    exactly, it then lies half a pixel off the centre on the same side as in open_clip.
    """
    if orientation >= 5:
        height, width = width, height
    resized = _resized(height, width, target)
    y, top = _axis(height, resized[0], target.height)
    x, left = _axis(width, resized[1], target.width)
    upright = Geometry(
        y=x if orientation >= 5 else y, x=y if orientation >= 5 else x, top=top, left=left, orientation=orientation
    )
    flip_y, flip_x = upright.flips
    return replace(
        upright,
        y=upright.y.mirrored() if flip_y else upright.y,
        x=upright.x.mirrored() if flip_x else upright.x,
    )


def _resized(height: int, width: int, target: Target) -> tuple[int, int]:
    """Height and width after resizing the whole upright image."""
    if target.resize_mode == "squash":
        return target.height, target.width
    ratios = height / target.height, width / target.width
    if target.resize_mode == "shortest" and target.height == target.width:
        short, size = min(height, width), target.height
        return (size, int(size * width / short)) if height <= width else (int(size * height / short), size)
    ratio = max(ratios) if target.resize_mode == "longest" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _axis(source: int, resized: int, target: int) -> tuple[Axis, int]:
    """A centred crop of `target` pixels, and the padding before it if there are fewer pixels than that."""
    crop = max(0, round((resized - target) / 2))
    return (
        Axis(source=source, resized=resized, crop=crop, kept=min(resized, target)),
        max(0, (target - resized) // 2),
    )


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after undoing an EXIF orientation."""
    return (height, width) if orientation >= 5 else (width, height)
