"""Finds out why an image cannot be decoded: it is cut off, damaged, or intact but of a kind that no decoder here reads.

Called after Pillow has failed, so it may take some time. The error names the kind wherever the file tells it.
"""

from __future__ import annotations

import functools
import io
import operator
import re
import struct
import zlib
from typing import Any

from PIL import TiffImagePlugin, UnidentifiedImageError

from clipbatch.stages.decode.header import is_cut_off
from clipbatch.stages.orientation import MAX_BEFORE_JPEG, jpeg_behind, jpeg_segments, kind_of
from clipbatch.stages.pillow import FORMATS
from clipbatch.types import Reject

# The first bytes of files that Pillow is not asked to open.
_NAMES = {
    b"8BPS": "a Photoshop document (PSD)",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"DDS ": "a DirectDraw surface (DDS)",
    b"gimp xcf": "a GIMP document (XCF)",
    b"BPG\xfb": "BPG",
    b"FLIF": "FLIF",
    b"P7\n": "PAM",
    b"PF\n": "PFM in colour",
}
# The kind of JPEG by the marker of its frame header (ITU-T T.81, B.1.1.3).
_FRAMES = {
    0xC3: "a lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "a JPEG with arithmetic coding"),
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "JPEG-LS",
}
_ITEM_TYPES = re.compile(rb"infe(?:\x02.{7}|\x03.{9})(\w{4})", re.DOTALL)
# The kind of HEIF by the type of an item that holds pixels (ISO 23008-12).
_CODECS = {
    b"unci": "uncompressed HEIF",
    b"vvc1": "HEIF with VVC",
    b"evc1": "HEIF with EVC",
    b"avc1": "HEIF with H.264",
    b"j2k1": "HEIF with JPEG 2000",
    b"jpeg": "HEIF with JPEG",
    b"lhv1": "HEIF with layered HEVC",
}
# All registered compressions, including those that Pillow does not know.
_TIFF_COMPRESSIONS = {
    **{value: name for name, value in TiffImagePlugin.COMPRESSION_INFO_REV.items()},
    **dict.fromkeys((9, 10, 34661), "JBIG"),
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34892, 34933), "of DNG"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **dict.fromkeys((32767, 32770, 34713), "of a camera"),
    **dict.fromkeys((34676, 34677), "SGI log"),
    34887: "LERC",
}
_WEBP = 50001  # Pillow knows it, but its libtiff is built without
_PHOTOMETRICS = {
    **dict.fromkeys((0, 1, 2, 4), ""),
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    **dict.fromkeys((32803, 34892), "raw sensor"),
    **dict.fromkeys((32844, 32845), "logarithmic"),
}


def reject(data: bytearray, error: Exception) -> Reject:
    """The status and error of an image that Pillow could not open or decode. error: Pillow's exception."""
    if isinstance(error, MemoryError):
        return Reject(status="too_large", error="not enough memory to decode it")
    if start := jpeg_behind(data):
        verdict = _judge(data[start:], error)
        text = f"{start} bytes before the beginning of a JPEG, which is not good either: {verdict.error}"
        return Reject(status=verdict.status, error=text)
    return _judge(data, error)


def _judge(data: bytearray, error: Exception) -> Reject:
    kind = kind_of(data)
    unidentified = isinstance(error, UnidentifiedImageError)
    if kind is None and unidentified:
        return Reject(status="unsupported", error=_unknown(data))
    text = str(error) or type(error).__name__
    if unidentified:
        text = f"damaged {kind} header"
    garbled = unidentified and kind in ("jpeg", "png", "gif")  # then a missing end proves nothing
    cut_off = "truncated" in text.lower() or isinstance(error, EOFError)
    cut_off = cut_off or (kind is not None and not garbled and is_cut_off(data, kind))
    if not (kind and is_cut_off(data, kind)) and (unknown := _variant(data, kind, text)):
        return Reject(status="unsupported", error=unknown)
    return Reject(status="truncated" if cut_off else "corrupt", error=text)


def _unknown(data: bytearray) -> str:
    """The error of a file that is not an image of a kind that Pillow is asked to open."""
    for start, name in _NAMES.items():
        if data.startswith(start):
            return f"{name}, which no decoder here reads: convert it"
    if data.startswith(b"\x1f\x8b"):
        try:
            packed = kind_of(zlib.decompressobj(31).decompress(data, 4096))
        except zlib.error:
            packed = None
        if packed:
            return f"a gzipped image ({packed}): unpack it (gunzip)"
    text = f"not an image of a known kind: starts with {bytes(data[:16])!r}"
    jpeg = re.search(rb"\xff\xd8\xff[\xc0-\xc4\xdb\xdd\xe0-\xef\xfe]", data)
    if jpeg and jpeg.start() >= MAX_BEFORE_JPEG:
        text += f"; a JPEG begins at byte {jpeg.start()}, and no more than {MAX_BEFORE_JPEG} are passed over"
    return text


def _variant(data: bytearray, kind: str | None, text: str) -> str | None:
    """The error of an intact image of a kind that no decoder here reads, or None. text: the decoder's error."""
    try:
        if kind == "jpeg":
            return _jpeg_variant(data)
        if kind in ("tiff", "tiff-be"):
            return _tiff_variant(data)
        if kind == "bmp":
            return text if text.startswith("Unsupported BMP") and _is_a_bmp(data) else None
        if kind == "png" and data[12:16] == b"CgBI":
            return "a PNG as Apple's tools change it for iPhones (CgBI): convert it"
        if kind == "heif":
            return _heif_variant(data)
        if kind == "jpeg2000" and (at := data.find(b"ihdr", 0, 4096)) > 0:
            components = int.from_bytes(data[at + 12 : at + 14], "big")
            return f"JPEG 2000 of {components} components" if 4 < components < 2**14 else None
    except Exception:  # a damaged file with meaningless numbers
        return None
    return None


def _jpeg_variant(data: bytearray) -> str | None:
    for marker, at, end in jpeg_segments(data):
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            bits, components = data[at], data[at + 5]
            if end - at != 6 + 3 * components or not 2 <= bits <= 16:
                return None
            if marker in _FRAMES:
                return f"{_FRAMES[marker]}, of {bits} bits, which no decoder here reads: convert it"
            if bits == 12:
                return "a 12-bit JPEG, which no decoder here reads: convert it"
            if bits == 8 and components not in (1, 3, 4):
                return f"a JPEG of {components} components, which no decoder here reads: convert it"
            return None
    return None


def _tiff_variant(data: bytearray) -> str | None:
    """Looks at the first directory. None unless all pixels are present and Pillow has no way to read such samples."""
    header = bytes(data[:16] if 43 in data[2:4] else data[:8])
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(header)
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    width, height, compression = tags[256], tags[257], tags.get(259, 1)
    samples = tags.get(277, 1)
    bits = tags.get(258, (1,))
    bits = bits * samples if len(bits) == 1 else bits
    starts, sizes = (tags[273], tags[279]) if 273 in tags else (tags[324], tags[325])
    present = all(at + size <= len(data) for at, size in zip(starts, sizes, strict=True))
    whole = compression != 1 or sum(sizes) * 8 >= width * height * sum(bits)
    if not (width > 0 < height and present and whole and len(bits) == samples and all(0 < n <= 64 for n in bits)):
        return None
    form, photometric, packing = tags.get(339, (1,)), tags[262], _TIFF_COMPRESSIONS.get(compression)
    key = (header[:2], photometric, form[:1], tags.get(266, 1), bits, tags.get(338, ()))
    known = compression in TiffImagePlugin.COMPRESSION_INFO and compression != _WEBP
    known &= key in TiffImagePlugin.OPEN_INFO
    if known or packing is None or photometric not in _PHOTOMETRICS:
        return None
    depth = f"{bits[0]}-bit" if len(set(bits)) == 1 else f"{'+'.join(map(str, bits))}-bit"
    article = "an" if depth.startswith(("8", "11", "18")) else "a"
    sort = {2: "signed", 3: "float"}.get(form[0], "")
    words = " ".join(f"{article} {depth} {sort} {_PHOTOMETRICS[photometric]} TIFF".split())
    packed = "" if packing == "raw" else f", compression {compression} ({packing})"
    return f"{words} of {samples} sample{'s' * (samples > 1)} a pixel{packed}, which no decoder here reads: convert it"


def _is_a_bmp(data: bytearray) -> bool:
    """Whether all values in the header of a BMP are legal."""
    size, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", data, 14)
    if not (16 <= size <= 124 and width > 0 and height and bits in (1, 2, 4, 8, 16, 24, 32, 64)):
        return False
    if compression == 3:
        masks = struct.unpack_from("<4I" if size >= 56 else "<3I", data, 54)
        return all(masks[:3]) and sum(masks) == functools.reduce(operator.or_, masks) < 2**bits  # no two overlap
    return compression in (0, 1, 2, 4, 5, 6, 11, 12, 13)


def _heif_variant(data: bytearray) -> str | None:
    types = set(_ITEM_TYPES.findall(data))
    if b"hvc1" in types and "HEIF" not in FORMATS:
        return "HEIC, for which pillow-heif has to be installed: pip install 'clipbatch[heic]'"
    if types & {b"hvc1", b"av01"}:  # the picture itself; all other items are thumbnails
        return None
    unknown = sorted(_CODECS[item] for item in types & _CODECS.keys())
    return f"{' and '.join(unknown)}, which no decoder here reads: convert it" if unknown else None
