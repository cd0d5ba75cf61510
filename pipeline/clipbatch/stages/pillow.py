"""Opens images with Pillow: which formats are allowed, which limits apply, and how pixels become RGB.

All code that opens images does it here, so that it behaves the same everywhere. Formats that make Pillow start other
programs (EPS) are left out. Pillow's limit on pixels and its warnings are off for the whole process while an image is
decoded (`unrestricted`), and as the process has them before and after. This module does not import torch, so a process
that only opens images starts quickly.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from clipbatch.stages.metadata import without_metadata
from clipbatch.stages.orientation import (
    jpeg_behind,
    kind_of,
    orientation,
    orientation_in,
    valid_orientation,
)

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM"]
# The limit for scans in a JPEG. Encoders write about ten. Even an empty scan costs a millisecond on an image of
# 9 megapixels, and a file of one megabyte can hold 80,000 of them.
MAX_SCANS = 500

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")

Image.init()  # otherwise Pillow raises a KeyError for a format whose plugin is not loaded yet

# The operation that turns an image of each EXIF orientation upright (Exif 2.3, 4.6.4).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Red, green and blue, 0 to 255.
Colour = tuple[int, int, int]
T = TypeVar("T")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
# Rounding errors that are tolerated in float samples with a range of 0 to 1 (or 255, 65535), as a share of the range.
_ROUNDING = 1e-3


# Of damaged metadata, above all; what matters becomes a status.
_NO_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\..*"), 0)
_changing = threading.Lock()
# The limit that the process had, once for each image that is being decoded.
_users: list[int | None] = []


@contextlib.contextmanager
def unrestricted() -> Iterator[None]:
    """Meanwhile Pillow neither refuses large images, whose size `max_pixels` limits, nor warns; in all threads.

    Both are settings of the process, so the first thread to enter changes them and the last one to leave puts them
    back, unless somebody else has changed them in the meantime.
    """
    with _changing:
        if not any(filter is _NO_WARNINGS for filter in warnings.filters):
            warnings.filters.insert(0, _NO_WARNINGS)  # type: ignore[attr-defined]
        _users.append(_users[0] if _users else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _changing:
            limit = _users.pop()
            if not _users:
                if Image.MAX_IMAGE_PIXELS is None:
                    Image.MAX_IMAGE_PIXELS = limit
                warnings.filters[:] = [  # type: ignore[index]
                    filter for filter in warnings.filters if filter is not _NO_WARNINGS
                ]


def scans(data: bytes | bytearray) -> int:
    """How many scans a JPEG claims to have, including a JPEG that begins behind other bytes; 0 for other kinds."""
    return data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") or jpeg_behind(data) else 0


def with_image(data: bytes | bytearray, work: Callable[[Image.Image, int], T]) -> T:
    """Open the image in `data` and return `work(image, orientation)`.

    orientation: 1 to 8; `work` has to undo it. If Pillow fails because of the metadata, it is called again without
    them. If other bytes precede a JPEG, they are skipped.
    Raises: the exception of Pillow or `work` for the unchanged file.
    """

    def attempt(file: bytes | bytearray, kind: str | None) -> T:
        stated = orientation_in(data, kind)  # `file` may have lost its metadata, so `data` is asked
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if kind == "png":
                _scale_key(image, *file[24:26])
            return work(image, _orientation_of(image) if stated is None else stated)

    kind = kind_of(data)
    with unrestricted():
        try:
            return attempt(data, kind)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's parsers raise all kinds of exceptions for damaged files
            if kind is None:
                if start := jpeg_behind(data):
                    return with_image(data[start:], work)
            elif bare := without_metadata(data, kind):
                with contextlib.suppress(Exception):
                    return attempt(bare, kind)
            raise error


def _scale_key(image: Image.Image, depth: int, colour: int) -> None:
    """Scale a PNG's transparent colour to the 8 bits of the samples. Pillow scales only the samples."""
    key = image.info.get("transparency")
    if colour == 0 and depth in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif colour == 2 and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in key)


def _orientation_of(image: Image.Image) -> int:
    """The orientation of an image that is neither JPEG nor PNG; 1 for a TIFF, which Pillow turns when it loads it."""
    return 1 if image.format == "TIFF" else orientation(image.info.get("exif"), _bytes(image.info.get("xmp")))


def _bytes(value: Any) -> bytes | None:
    return value if isinstance(value, bytes) else None


def orientation_of_picture(image: Image.Image) -> int:
    """The orientation of an image from the caller, whose metadata may have changed since it was opened."""
    image.load()  # Pillow turns a TIFF here
    try:
        return valid_orientation(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's parser raises all kinds of exceptions for hostile bytes
        return 1


def rgb(image: Image.Image, background: Colour | None = None) -> Image.Image:
    """`image` in 8-bit RGB. A transparent image is put on `background`, or stays RGBA if that is None.

    Pillow premultiplies RGBA when it resizes, as open_clip's transform does, so hidden colours do not show. The caller
    drops the alpha channel afterwards.
    """
    image.load()
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        gray = Image.fromarray(_eight_bits(values, image))
        if not isinstance(key, int):
            return gray.convert("RGB")
        image = Image.merge("LA", (gray, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    elif image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if background is None:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _eight_bits(values: NDArray[Any], image: Image.Image) -> NDArray[np.uint8]:
    """Gray samples with more than 8 bits, scaled to 0 to 255.

    The maximum of the format becomes 255, if the format has one. Floats and 32-bit integers have none, so the first of
    the ranges 0 to 1, 0 to 255 and 0 to 65535 that holds all samples is used, or else the image's own minimum and
    maximum. NaN and minus infinity become black, infinity becomes white.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (0,))[0]
    if image.mode.startswith("I;16"):
        low, high = 0.0, float(2**bits - 1 if 8 < bits < 16 else 65535)
    elif image.format == "PPM" and image.mode == "I":  # Pillow has scaled the samples to 16 bits
        low, high = 0.0, 65535.0
    else:
        if image.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
            values = values.view(np.uint32)  # Pillow reads them as signed
        low, high = _range(values)
    scaled = values.astype(np.float32)  # in place from here on, as the array may be very large
    scaled -= low
    scaled *= 255 / ((high - low) or 1)
    np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    eight = np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)
    return 255 - eight if tags.get(_PHOTOMETRIC) == 0 else eight  # 0 is white; Pillow inverts only up to 8 bits


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """The sample values that become black and white."""
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 1.0
    minimum, maximum = float(values[finite].min()), float(values[finite].max())
    for top in (1.0, 255.0, 65535.0):
        tolerance = top * _ROUNDING if values.dtype.kind == "f" else 0.0
        if -tolerance <= minimum and maximum <= top + tolerance:
            return 0.0, top
    return minimum, maximum
