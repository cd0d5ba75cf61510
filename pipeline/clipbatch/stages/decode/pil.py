"""Decodes with Pillow: all images that no fast decoder takes, and those on which a fast decoder has failed.

Decodes JPEG, PNG, WebP, GIF (first frame), BMP, TIFF (first page), AVIF, JPEG 2000, PPM, and HEIC if pillow-heif is
installed. Palette and 1-bit images become RGB before they are resized; open_clip resizes first, and palettes with
NEAREST, which looks worse. Transparent images are resized with premultiplied alpha and then lose it, as in open_clip.
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
    """The resized crop (uint8, CHW, not turned yet), its geometry and facts; or a Reject if it cannot be decoded."""

    def resized(image: Image.Image, orientation: int) -> tuple[Tensor, Geometry, Decoded]:
        if settings.pixels is None:
            whole, geometry = first_rules.rgb(image, target, upright=settings.orientation == "upright")
        else:
            whole = rgb(image, settings.background_rgb)
            stored = orientation if settings.orientation == "upright" else 1
            geometry = geometry_of(whole.height, whole.width, stored, target)
        y, x = geometry.y, geometry.x
        if (y.resized, x.resized) == (y.source, x.source):  # without a resize, open_clip ignores alpha altogether
            whole = whole.convert("RGB")
        (top, bottom), (left, right) = y.region, x.region
        cropped = whole.resize((x.kept, y.kept), RESAMPLING[target.interpolation], box=(left, top, right, bottom))
        stored_CHW = torch.from_numpy(np.array(cropped.convert("RGB"))).permute(2, 0, 1)
        width, height = upright_size(x.source, y.source, geometry.orientation)
        return stored_CHW, geometry, Decoded(width=width, height=height, decoder="pil")

    return open_checked(content, settings.max_pixels, resized)


def open_checked(content: Encoded | Picture, max_pixels: int, work: Callable[[Image.Image, int], T]) -> T | Reject:
    """Open the image and return `work(image, orientation)`, or a Reject if it cannot be opened or decoded."""
    data = content.data if isinstance(content, Encoded) else bytearray()
    count = scans(data)
    if count > MAX_SCANS:
        return Reject(
            status="corrupt", error=f"{count} scans, which would take very long: no camera or encoder makes so many"
        )

    def checked(image: Image.Image, orientation: int | None) -> T | Reject:
        if not image.width * image.height:
            return Reject(status="empty", error=f"{image.width} x {image.height} pixels")
        if image.width * image.height > max_pixels:  # before anything is decoded
            return too_large(image.width, image.height, max_pixels)
        return work(image, orientation_of_picture(image) if orientation is None else orientation)

    with unrestricted():
        try:
            if isinstance(content, Picture):  # the caller may go on to use it
                return checked(content.image, None)
            return with_image(data, checked)
        except Exception as error:  # Pillow's parsers raise all kinds of exceptions for damaged files
            return reject(data, error)


def too_large(width: int, height: int, max_pixels: int) -> Reject:
    return Reject(
        status="too_large",
        error=f"{width} x {height} pixels, over the limit of {max_pixels}",
        width=width,
        height=height,
    )
