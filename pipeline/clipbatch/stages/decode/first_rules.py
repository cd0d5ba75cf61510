"""The pixel rules of runs that were planned before the rules had a number (`pixels`). Such runs are finished by them.

They differ from the current rules: TIFFs with an orientation are turned twice. Fast decoders use only the first Exif
segment of a JPEG and the eXIf chunk of a PNG. The alpha channel is dropped, so hidden colours show. Of gray images with
more than 8 bits, only those with 16 bits are scaled. Only such old runs may use this module.
"""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from clipbatch.stages.decode.geometry import Geometry, Target, geometry_of
from clipbatch.stages.orientation import orientation, png_chunks, valid_orientation

# The channel counts that fast decoders accepted, by kind.
CHANNELS = {"jpeg": (1, 3), "png": (1, 2, 3, 4), "webp": (3, 4)}


def exif_orientation(data: bytearray, kind: str) -> int:
    """The orientation that fast decoders used."""
    exif = None
    if kind == "jpeg":
        at = 2
        while exif is None and at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                exif = bytes(data[at + 4 : end])
            at = end
    elif kind == "png":
        exif = next((bytes(data[start:end]) for name, start, end in png_chunks(data) if name == b"eXIf"), None)
    return orientation(exif, None)


def rgb(image: Image.Image, target: Target, *, upright: bool) -> tuple[Image.Image, Geometry]:
    """8-bit RGB without the alpha channel, and the geometry for the size and orientation of the unloaded image."""
    stated = valid_orientation(image.getexif().get(ExifTags.Base.Orientation)) if upright else 1
    geometry = geometry_of(image.height, image.width, stated, target)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"), geometry
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB"), geometry
