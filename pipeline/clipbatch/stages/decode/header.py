"""What an image's header says, and whether a fast decoder may be trusted with it.

DALI ends the whole process on some unparseable images, and no `except` catches that; so nothing reaches it, or
torchvision, that the parser of DALI's own decoder (nvImageCodec) refuses or that looks cut off. Never decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nvidia import nvimgcodec
from PIL import ExifTags, Image

from clipbatch.stages.pillow import valid_orientation

_STARTS = {
    "jpeg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF8",
    "bmp": b"BM",
    "tiff": b"II*\0",
    "tiff-be": b"MM\0*",
    "jpeg2000": b"\0\0\0\x0cjP  ",
}
_HEIF_BRANDS = (b"avi", b"hei", b"mif", b"msf", b"hev")
_CHANNELS = {"jpeg": (1, 3), "png": (1, 2, 3, 4), "webp": (3, 4)}
"""Kinds and channel counts that fast decoders turn into the same RGB as Pillow, on every device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that a fast decoder may be trusted with."""

    kind: str
    """jpeg, png or webp."""
    height: int
    """Stored pixels, before any EXIF turn."""
    width: int
    orientation: int
    """EXIF orientation, 1 to 8."""


def inspect(data: bytearray) -> Header | None:
    """The header of `data`, or None where only Pillow should look at it: of another kind, odd, damaged or cut off."""
    kind = kind_of(data)
    one_scan, exif = _jpeg_facts(data) if kind == "jpeg" else (True, _png_exif(data) if kind == "png" else None)
    if not one_scan and data.count(b"\xff\xda") > 100:
        return None
    if kind not in _CHANNELS or is_cut_off(data, kind) or data[12:16] == b"VP8X":
        return None
    try:
        stream = nvimgcodec.CodeStream(np.frombuffer(data, np.uint8))
        height, width, channels = int(stream.height), int(stream.width), int(stream.num_channels)
        plain = stream.codec_name == kind and np.dtype(stream.dtype) == np.uint8 and stream.precision in (0, 8)
    except (RuntimeError, TypeError, ValueError):  # nvImageCodec parses when a field is asked for
        return None
    if height < 1 or width < 1 or not plain or channels not in _CHANNELS[kind]:
        return None
    return Header(kind=kind, height=height, width=width, orientation=_orientation(exif))


def kind_of(data: bytearray) -> str | None:
    """The kind of image that `data` begins like, or None."""
    for kind, start in _STARTS.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and bytes(data[8:11]) in _HEIF_BRANDS:
        return "heif"
    return None


def is_cut_off(data: bytearray, kind: str) -> bool:
    """Whether an image of `kind` lacks its end."""
    if kind == "jpeg":  # an end before the middle is a thumbnail's
        return data.rfind(b"\xff\xd9") <= len(data) // 2
    if kind == "png":
        return data.rfind(b"IEND", max(0, len(data) - 4096)) < 0
    if kind == "webp":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "gif":
        return data.rstrip(b"\0")[-1:] != b";"
    if kind == "bmp":
        return int.from_bytes(data[2:6], "little") > len(data)
    return kind == "heif" and _boxes_end(data) > len(data)


def _boxes_end(data: bytearray) -> int:
    """Where the last top-level box of an ISO media file (AVIF, HEIC; ISO 14496-12, 4.2) says that it ends."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: up to the end of the file
            return len(data)
        at += size
    return at


def _orientation(exif: bytes | None) -> int:
    """What an Exif payload says; 1 where there is none or it is nonsense."""
    if exif is None:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        return valid_orientation(tags.get(ExifTags.Base.Orientation))
    except Exception:  # whatever Pillow's parser makes of hostile bytes
        return 1


def _jpeg_facts(data: bytearray) -> tuple[bool, bytes | None]:
    """Whether libjpeg reads one scan of this JPEG and refuses more, and the Exif payload (Exif 2.3, 4.7.2) if any.

    It reads one where the image is not progressive and the first scan has all components (ITU-T T.81, B.2.2 and
    B.2.3): asked because counting the scans takes six times as long as the rest.
    """
    at, components, exif = 2, 0, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, payload, end = data[at + 1], at + 4, at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:
            return payload < min(end, len(data)) and 0 < components == data[payload], exif
        if marker in (0xC0, 0xC1) and payload + 5 < min(end, len(data)):
            components = data[payload + 5]
        elif marker == 0xE1 and exif is None and data[payload : payload + 6] == b"Exif\0\0":
            exif = bytes(data[payload:end])
        at = end
    return False, exif


def _png_exif(data: bytearray) -> bytes | None:
    """The payload of the eXIf chunk (PNG 3rd edition, 11.3.4.5)."""
    at = 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            return b"Exif\0\0" + bytes(data[at + 8 : at + 8 + size])
        at += 12 + size
    return None
