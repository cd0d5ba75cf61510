"""What an image's header says, and whether a fast decoder may be trusted with it.

DALI ends the whole process on some unparseable images, and no `except` catches that; so nothing reaches it, or
torchvision, that the parser of DALI's own decoder (nvImageCodec) refuses or that looks cut off. Never decodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nvidia import nvimgcodec

from clipbatch.config import PIXELS
from clipbatch.stages.decode import first_rules
from clipbatch.stages.metadata import Segment, jpeg_metadata, jpeg_segments, kind_of, png_chunks, png_metadata
from clipbatch.stages.metadata import orientation as orientation_by

# Kinds and channel counts that fast decoders turn into the same RGB as Pillow, on every device.
_CHANNELS = {"jpeg": (1, 3), "png": (1, 3), "webp": (3,)}
_NOT_PLAIN = frozenset({b"tRNS", b"acTL"})
# Chunks of a PNG that may hold an orientation.
_TEXTS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})


class Header(NamedTuple):
    """A header that a fast decoder may be trusted with."""

    # jpeg, png or webp.
    kind: str
    # Stored pixels, before any EXIF turn.
    height: int
    width: int
    # EXIF orientation, 1 to 8.
    orientation: int


def inspect(data: bytearray, pixels: int | None = PIXELS) -> Header | None:
    """The header of `data`, or None where only Pillow should look at it: of another kind, odd, damaged, cut off, or
    with more to it than fast decoders show: transparency, or an animation. pixels: as in `DecodeSettings`."""
    kind = kind_of(data)
    if kind not in _CHANNELS or is_cut_off(data, kind):
        return None
    if kind == "jpeg":
        segments = jpeg_segments(data)
        if not _is_read_once(data, segments) and data.count(b"\xff\xda") > 100:
            return None
        exif, xmp = jpeg_metadata(data, segments)
        orientation = orientation_by(exif, xmp) if exif or xmp else 1
    elif kind == "png":
        chunks = {name for name, _, _ in png_chunks(data)}
        alpha = bytes(data[25:26]) in (b"\4", b"\6")
        if pixels is not None and (alpha or chunks & _NOT_PLAIN):
            return None
        orientation = orientation_by(*png_metadata(data)) if chunks & _TEXTS else 1
    elif data[12:16] == b"VP8X":
        return None
    else:
        orientation = 1
    try:
        stream = nvimgcodec.CodeStream(np.frombuffer(data, np.uint8))
        height, width, channels = stream.height, stream.width, stream.num_channels
        plain = stream.codec_name == kind and stream.dtype == np.uint8 and stream.precision in (0, 8)
    except (RuntimeError, TypeError, ValueError):  # nvImageCodec parses when a field is asked for
        return None
    known = _CHANNELS if pixels is not None else first_rules.CHANNELS
    if height < 1 or width < 1 or not plain or channels not in known[kind]:
        return None
    if pixels is None:
        orientation = first_rules.exif_orientation(data, kind)
    return Header(kind=kind, height=height, width=width, orientation=orientation)


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


def _is_read_once(data: bytearray, segments: list[Segment]) -> bool:
    """Whether libjpeg reads one scan of this JPEG and refuses more.

    It does where the image is not progressive and the first scan has all components (ITU-T T.81, B.2.2 and B.2.3):
    asked because counting the scans takes six times as long as the rest.
    """
    for marker, frame, end in segments:
        if marker <= 0xC1:  # SOF0 or SOF1
            last, scan, scan_end = segments[-1]
            whole = last == 0xDA and frame + 5 < end and scan < min(scan_end, len(data))
            return whole and 0 < data[frame + 5] == data[scan]
    return False
