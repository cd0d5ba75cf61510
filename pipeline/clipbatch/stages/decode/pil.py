"""Decode with Pillow: the last word on every image that a fast decoder does not take, and the judge of bad ones.

Decodes JPEG, PNG, WebP, GIF (first frame), BMP, TIFF (first page), AVIF, JPEG 2000, PPM, and HEIC where pillow-heif
is installed. Transparent, palette and 1-bit images become RGB before they are resized; open_clip resizes first, and
palettes with NEAREST, which looks worse.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from clipbatch.stages.decode.geometry import Geometry, Target, geometry_of, upright_size
from clipbatch.stages.decode.header import is_cut_off, kind_of
from clipbatch.stages.pillow import FORMATS, MOST_SCANS, rgb, scans, valid_orientation
from clipbatch.types import Decoded, Encoded, Picture, Reject

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
T = TypeVar("T")


def decode(
    content: Encoded | Picture, target: Target, *, upright: bool, max_pixels: int
) -> tuple[Tensor, Geometry, Decoded] | Reject:
    """The resized crop (uint8, CHW, as stored) with its geometry and facts, or why there is none."""

    def resized(image: Image.Image) -> tuple[Tensor, Geometry, Decoded]:
        orientation = valid_orientation(image.getexif().get(ExifTags.Base.Orientation)) if upright else 1
        width, height = upright_size(image.width, image.height, orientation)
        geometry = geometry_of(image.height, image.width, orientation, target)
        y, x = geometry.y, geometry.x
        (top, bottom), (left, right) = y.region, x.region
        cropped = rgb(image).resize((x.kept, y.kept), RESAMPLING[target.interpolation], box=(left, top, right, bottom))
        stored_CHW = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)
        return stored_CHW, geometry, Decoded(width=width, height=height, decoder="pil")

    return opened(content, max_pixels, resized)


def opened(content: Encoded | Picture, max_pixels: int, work: Callable[[Image.Image], T]) -> T | Reject:
    """What `work` makes of the opened image, or why it cannot be opened or decoded."""
    data = content.data if isinstance(content, Encoded) else bytearray()
    found = scans(data)
    if found > MOST_SCANS:
        return Reject(
            status="corrupt", error=f"{found} scans, which would take very long: no camera or encoder makes so many"
        )
    try:
        with _opened(content) as image:
            if not image.width * image.height:
                return Reject(status="empty", error=f"{image.width} x {image.height} pixels")
            if image.width * image.height > max_pixels:  # before getexif, which decodes a PNG
                return too_large(image.width, image.height, max_pixels)
            return work(image)
    except Exception as error:  # Pillow raises whatever its parsers stumble over
        return _reject(data, error)


def _opened(content: Encoded | Picture) -> contextlib.AbstractContextManager[Image.Image]:
    if isinstance(content, Picture):
        return contextlib.nullcontext(content.image)  # whoever handed it over may go on to use it
    return Image.open(io.BytesIO(content.data), formats=FORMATS)


def too_large(width: int, height: int, max_pixels: int) -> Reject:
    return Reject(
        status="too_large",
        error=f"{width} x {height} pixels, over the limit of {max_pixels}",
        width=width,
        height=height,
    )


def _reject(data: bytearray, error: Exception) -> Reject:
    kind = kind_of(data)
    if kind is None and isinstance(error, UnidentifiedImageError):
        return Reject(status="unsupported", error=f"not an image of a known kind: starts with {bytes(data[:16])!r}")
    text = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        text = f"damaged {kind} header"
    if isinstance(error, MemoryError):
        return Reject(status="too_large", error="not enough memory to decode it")
    garbled = isinstance(error, UnidentifiedImageError) and kind in ("jpeg", "png", "gif")  # their end proves nothing
    cut_off = "truncated" in text.lower() or isinstance(error, EOFError)
    cut_off = cut_off or (kind is not None and not garbled and is_cut_off(data, kind))
    return Reject(status="truncated" if cut_off else "corrupt", error=text)
