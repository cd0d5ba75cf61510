"""Decode with Pillow: the last word on every image that a fast decoder does not take, and the judge of bad ones.

Decodes JPEG, PNG, WebP, GIF (first frame), BMP, TIFF (first page), AVIF, JPEG 2000, PPM, and HEIC where pillow-heif
is installed. Palette and 1-bit images become RGB before they are resized; open_clip resizes first, and palettes with
NEAREST, which looks worse. Transparent ones are resized premultiplied and lose their alpha then, as in open_clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode import first_rules
from clipbatch.stages.decode.geometry import Geometry, Target, geometry_of, upright_size
from clipbatch.stages.decode.verdict import reject
from clipbatch.stages.pillow import MAX_SCANS, orientation_of_picture, rgb, scans, unrestricted, with_image
from clipbatch.types import Decoded, Encoded, Picture, Reject

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
T = TypeVar("T")


def decode(
    content: Encoded | Picture, target: Target, settings: DecodeSettings
) -> tuple[Tensor, Geometry, Decoded] | Reject:
    """The resized crop (uint8, CHW, as stored) with its geometry and facts, or why there is none."""

    def resized(image: Image.Image, orientation: int) -> tuple[Tensor, Geometry, Decoded]:
        if settings.pixels is None:
            whole, geometry = first_rules.rgb(image, target, upright=settings.orientation == "upright")
        else:
            whole = rgb(image, settings.background_rgb)
            stored = orientation if settings.orientation == "upright" else 1
            geometry = geometry_of(whole.height, whole.width, stored, target)
        y, x = geometry.y, geometry.x
        if (y.resized, x.resized) == (y.source, x.source):  # open_clip resizes nothing, and so hides nothing
            whole = whole.convert("RGB")
        (top, bottom), (left, right) = y.region, x.region
        cropped = whole.resize((x.kept, y.kept), RESAMPLING[target.interpolation], box=(left, top, right, bottom))
        stored_CHW = torch.from_numpy(np.array(cropped.convert("RGB"))).permute(2, 0, 1)
        width, height = upright_size(x.source, y.source, geometry.orientation)
        return stored_CHW, geometry, Decoded(width=width, height=height, decoder="pil")

    return opened(content, settings.max_pixels, resized)


def opened(content: Encoded | Picture, max_pixels: int, work: Callable[[Image.Image, int], T]) -> T | Reject:
    """What `work` makes of the opened image and its orientation, or why it cannot be opened or decoded."""
    data = content.data if isinstance(content, Encoded) else bytearray()
    found = scans(data)
    if found > MAX_SCANS:
        return Reject(
            status="corrupt", error=f"{found} scans, which would take very long: no camera or encoder makes so many"
        )

    def checked(image: Image.Image, orientation: int | None) -> T | Reject:
        if not image.width * image.height:
            return Reject(status="empty", error=f"{image.width} x {image.height} pixels")
        if image.width * image.height > max_pixels:  # before anything is decoded
            return too_large(image.width, image.height, max_pixels)
        return work(image, orientation_of_picture(image) if orientation is None else orientation)

    with unrestricted():
        try:
            if isinstance(content, Picture):  # whoever handed it over may go on to use it
                return checked(content.image, None)
            return with_image(data, checked)
        except Exception as error:  # Pillow raises whatever its parsers stumble over
            return reject(data, error)


def too_large(width: int, height: int, max_pixels: int) -> Reject:
    return Reject(
        status="too_large",
        error=f"{width} x {height} pixels, over the limit of {max_pixels}",
        width=width,
        height=height,
    )
