"""From an image's size to the model's input: which part is kept, and how it is resized. Pure arithmetic.

Follows open_clip's transforms (`open_clip/transform.py`, 3.3.0): `shortest` is torchvision's Resize and CenterCrop,
`longest` is ResizeKeepRatio and CenterCropOrPad, `squash` is a Resize to the exact size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

ResizeMode = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the model takes, read from the loaded model."""

    height: int
    width: int
    resize_mode: ResizeMode
    interpolation: Literal["bicubic", "bilinear"]
    # 0 to 255, around an image in mode `longest`.
    fill: int

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Target:
        """facts: `Model.facts`, or what `model.json` keeps of them."""
        return cls(**{name: facts[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a resize-then-crop-or-pad, in pixels."""

    # Length before resizing.
    source: int
    # Length after resizing the whole axis.
    resized: int
    # First resized pixel that is kept.
    crop: int
    # Resized pixels that are kept; fewer than the target's only where it is padded.
    kept: int

    @property
    def region(self) -> tuple[float, float]:
        """The kept part in source pixels: resizing it to `kept` pixels equals resizing all and cropping."""
        scale = self.source / self.resized
        return self.crop * scale, (self.crop + self.kept) * scale

    def mirrored(self) -> Axis:
        """The same for an axis that will be flipped after resizing."""
        return replace(self, crop=self.resized - self.crop - self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How the stored (not yet turned) image is resized and cropped, and how the result is turned upright."""

    # The stored image's vertical axis.
    y: Axis
    x: Axis
    # Fill pixels above the upright result; more than 0 only in mode `longest`.
    top: int
    left: int
    # EXIF orientation (Exif 2.3, tag 0x0112), 1 to 8, to undo after resizing; 1: as it is.
    orientation: int

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether the stored y and x axes run backwards."""
        return self.orientation in (3, 4, 6, 7), self.orientation in (2, 3, 7, 8)

    @property
    def plain(self) -> bool:
        """Whether the resized crop fills the target as it is: not turned, not padded."""
        return self.orientation == 1 and self.top == self.left == 0

    @property
    def transposed(self) -> bool:
        """Whether the stored axes change places."""
        return self.orientation >= 5


@functools.lru_cache(maxsize=4096)  # many images are of the same few sizes, and Python's lock is what a GPU waits for
def geometry_of(height: int, width: int, orientation: int, target: Target) -> Geometry:
    """Geometry for a stored image of `height` x `width` pixels.

    The crop is worked out in the upright frame and carried back to the stored one: where the two differ in parity,
    the crop lies half a pixel off the centre, and on the side where open_clip has it.
    """
    if orientation >= 5:
        height, width = width, height
    resized = _resized(height, width, target)
    y, top = _axis(height, resized[0], target.height)
    x, left = _axis(width, resized[1], target.width)
    unturned = Geometry(
        y=x if orientation >= 5 else y, x=y if orientation >= 5 else x, top=top, left=left, orientation=orientation
    )
    flip_y, flip_x = unturned.flips
    return replace(
        unturned,
        y=unturned.y.mirrored() if flip_y else unturned.y,
        x=unturned.x.mirrored() if flip_x else unturned.x,
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
    """The crop to `target` pixels around the centre, and the padding before it where there are fewer."""
    crop = max(0, round((resized - target) / 2))
    return (
        Axis(source=source, resized=resized, crop=crop, kept=min(resized, target)),
        max(0, (target - resized) // 2),
    )


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after undoing an EXIF orientation."""
    return (height, width) if orientation >= 5 else (width, height)
