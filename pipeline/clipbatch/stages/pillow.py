"""Open images with Pillow, the same way wherever it is done: which formats, which limits, and how pixels become RGB.

Formats that start other programs (EPS) are left out. Pillow's limit on pixels and its warnings are off for the process
while an image is being decoded (`unrestricted`), and are as the process has them before and after. Knows nothing of
torch, so that a process that only looks at pictures starts quickly.
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

from clipbatch.stages.metadata import (
    jpeg_behind,
    kind_of,
    orientation,
    orientation_in,
    valid_orientation,
    without_metadata,
)

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM"]
MAX_SCANS = 500
"""In a JPEG. Encoders make some ten; an empty one costs a millisecond on 9 megapixels, and a megabyte holds 80,000."""

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")

Image.init()  # else a format that is named before its plugin is loaded is a KeyError

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright (Exif 2.3, 4.6.4)."""
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
T = TypeVar("T")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
_ROUNDING = 1e-3
"""How far float samples may lie beyond 0 and 1, as a share of the range, and still be meant to lie within."""


# Of damaged metadata, above all; what matters becomes a status.
_NO_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\..*"), 0)
_changing = threading.Lock()
_users: list[int | None] = []
"""The limit that the process had, once for each image that is being decoded."""


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
    """How many scans a JPEG claims to have, also one behind other bytes; 0 for other kinds."""
    return data.count(b"\xff\xda") if data.startswith(b"\xff\xd8") or jpeg_behind(data) else 0


def with_image(data: bytes | bytearray, work: Callable[[Image.Image, int], T]) -> T:
    """What `work` makes of the opened image and its orientation (1 to 8, still to be undone).

    A file whose metadata Pillow stumbles over is tried again without them, and a JPEG behind other bytes from its
    beginning. Raises: what Pillow or `work` raises for the file as it is.
    """

    def tried(file: bytes | bytearray, kind: str | None) -> T:
        stated = orientation_in(data, kind)  # not of `file`, which may have lost its metadata
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if kind == "png":
                _scale_key(image, *file[24:26])
            return work(image, _orientation_of(image) if stated is None else stated)

    kind = kind_of(data)
    with unrestricted():
        try:
            return tried(data, kind)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises whatever its parsers stumble over
            if kind is None:
                if start := jpeg_behind(data):
                    return with_image(data[start:], work)
            elif bare := without_metadata(data, kind):
                with contextlib.suppress(Exception):
                    return tried(bare, kind)
            raise error


def _scale_key(image: Image.Image, depth: int, colour: int) -> None:
    """Bring a PNG's transparent colour to the 8 bits of the samples that Pillow reads, which it leaves undone."""
    key = image.info.get("transparency")
    if colour == 0 and depth in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif colour == 2 and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in key)


def _orientation_of(image: Image.Image) -> int:
    """Of an image that is no JPEG or PNG. Pillow turns a TIFF itself when it loads it."""
    return 1 if image.format == "TIFF" else orientation(image.info.get("exif"), _bytes(image.info.get("xmp")))


def _bytes(value: Any) -> bytes | None:
    return value if isinstance(value, bytes) else None


def orientation_of_picture(image: Image.Image) -> int:
    """Of an image that was handed over, and whose metadata may have been changed since it was opened."""
    image.load()  # which turns a TIFF
    try:
        return valid_orientation(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # whatever Pillow's parser makes of hostile bytes
        return 1


def rgb(image: Image.Image, background: Colour | None = None) -> Image.Image:
    """`image` in 8-bit RGB; a transparent one on `background`, or as RGBA where there is none.

    Pillow resizes RGBA premultiplied, as open_clip's transform has it, so that hidden colours do not show; to drop the
    alpha channel afterwards is up to the caller.
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
    """Gray samples of more than 8 bits, scaled to 0 to 255: by the format's own maximum, if it has one.

    Floats and 32-bit integers have none: they lie within 0 to 1, else 0 to 255, else 0 to 65535, else between the
    picture's own extremes. Not a number and minus infinity are black, infinity is white.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (0,))[0]
    if image.mode.startswith("I;16"):
        low, high = 0.0, float(2**bits - 1 if 8 < bits < 16 else 65535)
    elif image.format == "PPM" and image.mode == "I":  # Pillow has scaled it to 16 bits, whatever its maximum
        low, high = 0.0, 65535.0
    else:
        if image.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
            values = values.view(np.uint32)  # which Pillow takes for signed
        low, high = _range(values)
    scaled = values.astype(np.float32)  # and from here on in place, as there may be very many
    scaled -= low
    scaled *= 255 / ((high - low) or 1)
    np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    eight = np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)
    return 255 - eight if tags.get(_PHOTOMETRIC) == 0 else eight  # white is zero, which Pillow follows up to 8 bits


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """Which samples are black and white."""
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0, 1.0
    least, most = float(values[finite].min()), float(values[finite].max())
    for top in (1.0, 255.0, 65535.0):
        spare = top * _ROUNDING if values.dtype.kind == "f" else 0.0
        if -spare <= least and most <= top + spare:
            return 0.0, top
    return least, most
