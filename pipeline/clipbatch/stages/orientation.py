"""What an image file states besides its pixels: its kind, and its orientation (Exif, XMP).

One rule holds for all decoders: the orientation is the one that `PIL.ImageOps.exif_transpose` would use, and metadata
that cannot be read are ignored. Nothing here decodes or raises; decoders find out whether the pixels are good.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

_STARTS = {
    "jpeg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF8",
    "bmp": b"BM",
    "tiff": b"II*\0",
    "tiff-be": b"MM\0*",
    "jpeg2000": b"\0\0\0\x0cjP  ",
}
_BIG_TIFF = (b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"avi", b"hei", b"mif", b"msf", b"hev")
_ADOBE_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# For each marker of a JPEG, whether a length and a payload follow it.
_HAS_LENGTH = bytes(0xC0 <= marker < 0xFF and not 0xD0 <= marker <= 0xD9 for marker in range(256))
_MARKER_AND_LENGTH = struct.Struct(">HH").unpack_from
_FILL = re.compile(rb"\xff+")
# The first bytes of files that contain JPEGs but are not images: archives, documents, camera data, music, programs.
_NOT_BEFORE_A_JPEG: tuple[bytes, ...]
_NOT_BEFORE_A_JPEG = (b"PK", b"%PDF", b"%!PS", b"RIFF", b"8BPS", b"ID3", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"FUJIFILM")
_NOT_BEFORE_A_JPEG += (b"OggS", b"FLV", b"Rar!", b"7z\xbc\xaf", b"\x7fELF", b"MZ", b"\0\5\x16\0", b"\0\5\x16\7")
# At most this many bytes before a JPEG are skipped.
MAX_BEFORE_JPEG = 2**16
# The bytes of one value of a directory's entry, by its type (TIFF 6.0, section 2); 0: not an ordinary type.
_TYPE_BYTES = bytes([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8]).ljust(2**16, b"\0")
_DIRECTORIES = {
    order: (struct.Struct(f"{order}L").unpack_from, struct.Struct(f"{order}H").unpack_from, f"{order}HHLL")
    for order in "<>"
}
_PNG_KEYWORDS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp")
# At most this many bytes of a compressed text are unpacked to look for an orientation.
_MAX_TEXT = 2**22


def kind_of(data: bytes | bytearray) -> str | None:
    """The kind of image that the first bytes of `data` indicate, or None."""
    for kind, start in _STARTS.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and bytes(data[8:11]) in _HEIF_BRANDS:
        return "heif"
    if data.startswith(_BIG_TIFF):
        return "tiff" if data[:1] == b"I" else "tiff-be"
    return None


def jpeg_behind(data: bytes | bytearray) -> int:
    """The offset of a JPEG with complete headers behind other bytes, at most `MAX_BEFORE_JPEG`; 0 if there is none."""
    if kind_of(data) or data.startswith(_NOT_BEFORE_A_JPEG) or data[4:8] == b"ftyp":
        return 0
    at = 0
    for _ in range(8):  # the bytes of a JPEG's beginning may occur by chance
        at = data.find(_STARTS["jpeg"], at + 1, MAX_BEFORE_JPEG + 3)
        if at < 0:
            return 0
        segments = jpeg_segments(memoryview(data)[at:])
        if segments and segments[-1][0] == 0xDA:
            return at
    return 0


def valid_orientation(value: object) -> int:
    """`value` if it is one of the eight orientations of EXIF, or else 1."""
    return int(value) if value in range(1, 9) else 1  # type: ignore[call-overload]  # 6.0 is one, too


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """The orientation in an Exif payload or, if that holds none, in an XMP packet; 1 if neither states one."""
    if exif:
        tags = Image.Exif()
        try:
            tags.load(exif)
            if ExifTags.Base.Orientation in tags:
                return valid_orientation(tags[ExifTags.Base.Orientation])
        except Exception:  # Pillow's parser raises all kinds of exceptions for hostile bytes
            pass
    match = _XMP_ORIENTATION.search(xmp) if xmp else None
    return int(match[1]) if match and match[1] in b"12345678" else 1


# A segment of a JPEG: its marker, and the offsets of the beginning and end of its payload.
Segment = tuple[int, int, int]


def jpeg_segments(data: bytes | bytearray | memoryview) -> list[Segment]:
    """The segments of a JPEG up to the header of its first scan (ITU-T T.81, B.1.1).

    Fill bytes before a marker are legal. Other bytes between segments are skipped, as libjpeg and Pillow do.
    """
    segments, at, last = list[Segment](), 2, len(data) - 4
    add, read = segments.append, _MARKER_AND_LENGTH
    while at <= last:
        marker, length = read(data, at)
        if _HAS_LENGTH[marker & 0xFF] and marker >= 0xFF00:
            end = at + 2 + length
            add((marker - 0xFF00, at + 4, end))
            if marker == 0xFFDA:
                break
            at = end
        elif marker == 0xFFD9:  # end of the image
            break
        elif 0xFF00 <= marker < 0xFFFF:  # a marker without a payload
            at += 2
        elif fill := _FILL.search(data, at):
            at = fill.end() - 1 if fill.start() == at else fill.start()
        else:
            break
    return segments


def jpeg_pixels(data: bytes | bytearray) -> int | None:
    """Height times width of a JPEG by its frame header (ITU-T T.81, B.2.2), or None if there is none."""
    for marker, start, end in jpeg_segments(data) if kind_of(data) == "jpeg" else ():
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and start + 5 <= min(end, len(data)):
            height, width = struct.unpack(">HH", data[start + 1 : start + 5])
            return int(height * width)
    return None


def jpeg_metadata(data: bytes | bytearray, segments: list[Segment]) -> tuple[bytes | None, bytes | None]:
    """A JPEG's Exif, joined from all its segments (the first one may be empty), and its last XMP packet."""
    blocks, xmp = list[bytes | bytearray](), None
    for marker, payload, end in segments:
        if marker == 0xE1:
            if data[payload : payload + 6] == b"Exif\0\0":
                blocks.append(data[payload + 6 : end])
            elif data[payload : payload + len(_ADOBE_XMP)] == _ADOBE_XMP:
                xmp = bytes(data[payload + len(_ADOBE_XMP) : end])
    return b"".join([b"Exif\0\0", *blocks]) if blocks else None, xmp


def jpeg_orientation(data: bytes | bytearray, segments: list[Segment]) -> int:
    """The orientation of a JPEG. segments: `jpeg_segments` of it."""
    blocks = [
        (payload, end)
        for marker, payload, end in segments
        if marker == 0xE1 and data[payload : payload + 6] == b"Exif\0\0"
    ]
    if len(blocks) == 1:
        (start, end), *_ = blocks
        if (value := _plain_orientation(data, start + 6, min(end, len(data)))) is not None:
            return value
    exif, xmp = jpeg_metadata(data, segments)
    return orientation(exif, xmp) if exif or xmp else 1


def _plain_orientation(data: bytes | bytearray, start: int, end: int) -> int | None:
    """The orientation in the Exif from `start` to `end`, if it has one and all before it is as usual.

    Pillow says the same, but reads every tag, which takes fifty times as long. None: ask Pillow. It ends reading, and
    so finds no orientation, at an earlier tag whose values lie outside.
    """
    if data[start : start + 4] == b"II*\0":
        read_long, read_short, entry = _DIRECTORIES["<"]
    elif data[start : start + 4] == b"MM\0*":
        read_long, read_short, entry = _DIRECTORIES[">"]
    else:
        return None
    size = end - start
    if size < 8 or (at := read_long(data, start + 4)[0]) + 2 > size:
        return None
    first = start + at + 2
    last = first + 12 * read_short(data, first - 2)[0]
    if last > end:
        return None
    for tag, kind, count, value in struct.iter_unpack(entry, data[first:last]):
        taken = _TYPE_BYTES[kind] * count
        if tag == ExifTags.Base.Orientation:
            if (kind, count) != (3, 1):
                return None
            return valid_orientation(value & 0xFFFF if entry[0] == "<" else value >> 16)
        if not taken or (taken > 4 and value + taken > size):
            return None
    return None


def png_chunks(data: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """Name, and offsets of the payload and its end, of each complete chunk of a PNG (PNG 3rd edition, 5.3)."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        name = bytes(data[at + 4 : at + 8])
        yield name, at + 8, end
        if name == b"IEND":
            return
        at = end + 4


def png_metadata(data: bytes | bytearray) -> tuple[bytes | None, bytes | None]:
    """A PNG's Exif and XMP, from all places where Pillow looks: the chunk eXIf, and texts named `exif`, `Raw profile
    type exif` and XMP."""
    last: dict[bytes, tuple[bytes, bytes]] = {}
    for name, start, end in png_chunks(data):
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = bytes(data[start : start + 80]).partition(b"\0")[0]
            if keyword in _PNG_KEYWORDS and (keyword != b"exif" or name == b"tEXt"):
                last[keyword] = name, bytes(data[start:end])
        elif name == b"eXIf":
            last[b"exif"] = b"tEXt", b"exif\0Exif\0\0" + data[start:end]
    exif, raw, xmp = (_png_text(*last[keyword]) if keyword in last else None for keyword in _PNG_KEYWORDS)
    return _from_hex(raw) if exif is None and raw is not None else exif, xmp


def _png_text(name: bytes, chunk: bytes) -> bytes:
    """The text of a chunk without its keyword. Compressed text is unpacked up to `_MAX_TEXT` bytes."""
    _, _, text = chunk.partition(b"\0")
    compressed = name == b"zTXt"
    if compressed:
        text = text[1:]
    elif name == b"iTXt":
        compressed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        return zlib.decompressobj().decompress(text, _MAX_TEXT) if compressed else text
    except zlib.error:
        return b""


def _from_hex(profile: bytes) -> bytes | None:
    """The Exif in ImageMagick's text `Raw profile type exif`: a name and a length on lines of their own, then hex."""
    try:
        return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return None


def orientation_in(data: bytes | bytearray, kind: str | None) -> int | None:
    """The orientation of a JPEG or PNG. None for other kinds; Pillow has to say it."""
    if kind == "jpeg":
        return jpeg_orientation(data, jpeg_segments(data))
    return orientation(*png_metadata(data)) if kind == "png" else None
