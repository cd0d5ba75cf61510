"""Reads an image's header and decides whether a fast decoder may decode the image. Decodes nothing.

DALI ends the whole process on some images that cannot be parsed, and no `except` can catch that. So DALI and
torchvision get an image only if the parser of DALI's own decoder (nvImageCodec) accepts it and it does not look
cut off.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nvidia import nvimgcodec

from clipbatch.config import PIXELS
from clipbatch.stages.decode import first_rules
from clipbatch.stages.orientation import Segment, jpeg_orientation, jpeg_segments, kind_of, png_chunks, png_metadata
from clipbatch.stages.orientation import orientation as orientation_by

# The kinds and channel counts for which fast decoders produce the same RGB as Pillow, on every device.
_CHANNELS = {"jpeg": (1, 3), "png": (1, 3), "webp": (3,)}
# Chunks of a PNG with transparency or an animation.
_NOT_PLAIN = frozenset({b"tRNS", b"acTL"})
# Chunks of a PNG that may hold an orientation.
_TEXTS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
_UINT8 = np.dtype(np.uint8)


class Header(NamedTuple):
    """The header of an image that a fast decoder may decode."""

    # jpeg, png or webp.
    kind: str
    # Stored pixels, before the image is turned upright.
    height: int
    width: int
    # EXIF orientation, 1 to 8.
    orientation: int
    # A JPEG whose three components are red, green and blue, not luminance and chrominance.
    is_rgb: bool = False


def inspect(data: bytearray, pixels: int | None = PIXELS) -> Header | None:
    """The header of `data`, or None if only Pillow may decode the image.

    That is the case for other kinds, for images that are unusual, damaged or cut off, and for those with transparency
    or an animation, which fast decoders do not show. pixels: as in `DecodeSettings`.
    """
    kind, is_rgb, orientation = kind_of(data), False, 1
    if kind not in _CHANNELS or is_cut_off(data, kind):
        return None
    if kind == "jpeg":
        segments = jpeg_segments(data)
        if not _is_read_once(data, segments) and data.count(b"\xff\xda") > 100:
            return None
        is_rgb = data[6:11] != b"JFIF\0" and _is_rgb(data, segments)
        if 0xE1 in [marker for marker, _, _ in segments]:  # there may be Exif or XMP
            orientation = jpeg_orientation(data, segments)
    elif kind == "png":
        chunks = {name for name, _, _ in png_chunks(data)}
        alpha = bytes(data[25:26]) in (b"\4", b"\6")
        if pixels is not None and (alpha or chunks & _NOT_PLAIN):
            return None
        orientation = orientation_by(*png_metadata(data)) if chunks & _TEXTS else 1
    elif data[12:16] == b"VP8X":
        return None
    try:
        stream = nvimgcodec.CodeStream(np.frombuffer(data, np.uint8))
        height, width, channels = stream.height, stream.width, stream.num_channels
        bits = stream.precision  # 0: as many as the type has
        plain = stream.codec_name == kind and (bits == 8 or (bits == 0 and stream.dtype == _UINT8))
    except (RuntimeError, TypeError, ValueError):  # nvImageCodec parses the header when a field is read
        return None
    known = _CHANNELS if pixels is not None else first_rules.CHANNELS
    if height < 1 or width < 1 or not plain or channels not in known[kind]:
        return None
    if pixels is None:
        orientation = first_rules.exif_orientation(data, kind)
    return Header(kind, height, width, orientation, is_rgb)


def is_cut_off(data: bytearray, kind: str) -> bool:
    """Whether the end of an image of `kind` is missing."""
    if kind == "jpeg":  # an end marker before the middle of the file belongs to a thumbnail
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
    """The end of the last top-level box of an ISO media file, as its size field states it (AVIF, HEIC; ISO 14496-12,
    4.2)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # size 0: the box extends to the end of the file
            return len(data)
        at += size
    return at


def _is_rgb(data: bytearray, segments: list[Segment]) -> bool:
    """Whether libjpeg takes the three components for red, green and blue: there is no JFIF segment, and the Adobe
    segment says transform 0, or without one the components are named R, G and B (libjpeg, default_decompress_parms)."""
    transform, names = None, b""
    for marker, start, end in segments:
        if marker == 0xE0 and data[start : start + 5] == b"JFIF\0":
            return False
        if marker == 0xEE and data[start : start + 5] == b"Adobe" and end - start >= 12:
            transform = data[start + 11]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF: the header of the frame
            names = bytes(data[start + 6 : end : 3])
    return len(names) == 3 and (transform == 0 or (transform is None and names == b"RGB"))


def _is_read_once(data: bytearray, segments: list[Segment]) -> bool:
    """Whether libjpeg reads only one scan of this JPEG and refuses further ones.

    That is so if the image is not progressive and its first scan has all components (ITU-T T.81, B.2.2 and B.2.3). It
    is checked because counting the scans takes six times as long as everything else here.
    """
    for marker, frame, end in segments:
        if marker <= 0xC1:  # SOF0 or SOF1
            last, scan, scan_end = segments[-1]
            whole = last == 0xDA and frame + 5 < end and scan < min(scan_end, len(data))
            return whole and 0 < data[frame + 5] == data[scan]
    return False
