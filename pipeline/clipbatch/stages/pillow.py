"""Open images with Pillow, the same way wherever it is done: which formats, which limits, and how pixels become RGB.

Formats that start other programs (EPS) are left out. Importing this module changes Pillow's settings for the process.
Knows nothing of torch, so that a process that only looks at pictures starts quickly.
"""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
from PIL import Image

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM"]
MOST_SCANS = 500
"""In a JPEG. Encoders make some ten; an empty one costs a millisecond on 9 megapixels, and a megabyte holds 80,000."""

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")

Image.init()  # else a format that is named before its plugin is loaded is a KeyError
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is checked before anything is decoded, and does not warn
warnings.filterwarnings("ignore", module=r"PIL\..*")  # of damaged metadata; what matters becomes a status


def scans(data: bytearray) -> int:
    """How many scans a JPEG claims to have; 0 for other kinds."""
    return data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") else 0


def rgb(image: Image.Image) -> Image.Image:
    """`image` as 8-bit RGB, without its alpha channel."""
    if image.mode.startswith("I;16"):  # Pillow would cut all values at 255, and the picture would be white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def valid_orientation(value: object) -> int:
    """`value` if it is one of EXIF's eight orientations, else 1."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
