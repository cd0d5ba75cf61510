"""Removes from an image file all that its pixels do not need, for decoders that fail because of the rest."""

from __future__ import annotations

import re
import struct

from clipbatch.stages.orientation import jpeg_segments, png_chunks


def without_metadata(data: bytes | bytearray, kind: str | None) -> bytes | None:
    """The file without everything that its pixels do not need. Used when a decoder fails because of the rest.

    None if there is nothing to remove, or metadata of this kind of file cannot trouble Pillow.
    """
    strip = {"jpeg": _bare_jpeg, "png": _bare_png, "tiff": _bare_tiff, "tiff-be": _bare_tiff, "heif": _bare_heif}
    try:
        bare = strip[kind](data) if kind in strip else None
    except (struct.error, IndexError):  # the file is damaged
        return None
    return None if bare == data else bare


def _bare_jpeg(data: bytes | bytearray) -> bytes | None:
    segments = jpeg_segments(data)
    if not segments or segments[-1][0] != 0xDA:
        return None
    pieces = [bytes(data[:2])]
    for marker, payload, end in segments[:-1]:
        colour = marker == 0xEE and data[payload : payload + 5] == b"Adobe" and end - payload >= 12
        colour |= marker == 0xE0 and data[payload : payload + 5] == b"JFIF\0" and end - payload >= 14
        if colour or not (0xE0 <= marker <= 0xFE):
            pieces.append(bytes(data[payload - 4 : end]))
    return b"".join([*pieces, bytes(data[segments[-1][1] - 4 :])])


def _bare_png(data: bytes | bytearray) -> bytes:
    """A PNG without ancillary chunks (their names begin in lower case), except that of transparency. An animated PNG
    becomes its default picture, which is what Pillow shows first."""
    pieces, rest = [bytes(data[:8])], 8
    for name, start, end in png_chunks(data):
        if name == b"tRNS" or not name[0] & 0x20:
            pieces.append(bytes(data[start - 8 : end + 4]))
        rest = end + 4
    return b"".join([*pieces, bytes(data[rest:])])


# Tags that the pixels or the orientation may need (TIFF 6.0, its supplements, and those of libtiff).
_TIFF_TAGS = frozenset(
    [*range(254, 260), *range(262, 267), *range(273, 282), 284, *range(290, 294), 301, *range(317, 326), 332, 334]
).union([336, *range(338, 343), 347, *range(512, 522), *range(529, 533)])


def _bare_tiff(data: bytes | bytearray) -> bytes:
    """A TIFF whose first directory has type 0 in all other entries. Readers skip entries of an unknown type."""
    order, big = "<" if data[:1] == b"I" else ">", 43 in data[2:4]
    offset, count, entry = ("Q", "Q", 20) if big else ("L", "H", 12)
    bare = bytearray(data)
    (at,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + count, data, at)
    first = at + (8 if big else 2)
    for at_entry in range(first, min(first + entries * entry, len(data) - entry + 1), entry):
        if struct.unpack_from(order + "H", data, at_entry)[0] not in _TIFF_TAGS:
            bare[at_entry + 2 : at_entry + 4] = b"\0\0"
    return bytes(bare)


def _bare_heif(data: bytes | bytearray) -> bytes:
    """An HEIF file without Exif items (ISO 14496-12, 8.11.6: the type follows version, flags, id and two bytes)."""
    return re.sub(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", rb"\1none", data, flags=re.DOTALL)
