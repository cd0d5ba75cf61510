"""Pictures for tests, and the ways in which files say how they are to be shown. Nothing here knows `clipbatch`."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.support.corpus import photo

# How a picture is stored so that each orientation makes it upright (Exif 2.3, 4.6.4).
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def base(size: tuple[int, int] = (150, 100)) -> Image.Image:
    """A picture of (width, height) pixels in RGB, the same every time; turned or mirrored it is another one."""
    return photo(np.random.default_rng(sum(size)), *size)


def stored(image: Image.Image, orientation: int) -> Image.Image:
    turn = STORED[orientation]
    return image if turn is None else image.transpose(turn)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """What `stored` was made of."""
    return stored(image, {6: 8, 8: 6}.get(orientation, orientation))


def veiled(image: Image.Image) -> Image.Image:
    """With an alpha channel that has clear, half clear and solid parts; other colours are hidden behind the clear."""
    alpha = Image.linear_gradient("L").resize(image.size).point(lambda value: 0 if value < 60 else min(255, value + 40))
    hidden = Image.composite(image, Image.new("RGB", image.size, (250, 30, 240)), alpha.point(lambda a: 255 * (a > 0)))
    return Image.merge("RGBA", (*hidden.split(), alpha))


def keyed(image: Image.Image, value: int) -> Image.Image:
    """`image`, gray or with a palette, in RGBA and clear where its sample is `value`."""
    alpha = Image.fromarray(np.where(np.asarray(image) == value, 0, 255).astype(np.uint8))
    return Image.merge("RGBA", (*image.convert("RGB").split(), alpha))


def deep(image: Image.Image, top: float) -> NDArray[np.float64]:
    """The gray of `image` as whole numbers from 0 to `top`."""
    return np.rint(np.asarray(image.convert("L")).astype(np.float64) * top / 255)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(f"{order}LHHHLHHL", 8, 1, 274, 3, 1, orientation, 0, 0)


def xmp(orientation: int, *, element: bool = False) -> bytes:
    form = "><tiff:Orientation>{}</tiff:Orientation></rdf:Description>" if element else ' tiff:Orientation="{}"/>'
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    packet += '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"' + form.format(orientation)
    return (packet + "</rdf:RDF></x:xmpmeta>").encode()


def segment(marker: int, payload: bytes, fill: int = 0) -> bytes:
    """A JPEG's segment, behind fill bytes."""
    return b"\xff" * (fill + 1) + struct.pack(">BH", marker, len(payload) + 2) + payload


def app1(payload: bytes, fill: int = 0) -> bytes:
    return segment(0xE1, payload, fill)


def adobe_xmp(packet: bytes) -> bytes:
    return app1(b"http://ns.adobe.com/xap/1.0/\0" + packet)


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG's chunk, with a checksum that may be wrong."""
    check = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def with_chunks(png: bytes, *chunks: bytes, late: bool = False) -> bytes:
    """With `chunks` behind the header, or behind the pixels."""
    at = -12 if late else 33
    return png[:at] + b"".join(chunks) + png[at:]


def with_tags(tiff: bytes, *entries: bytes) -> bytes:
    """A little-endian TIFF with a new first directory, which has `entries` of 12 bytes, too."""
    (at,) = struct.unpack_from("<L", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    old = [tiff[start : start + 12] for start in range(at + 2, at + 2 + 12 * count, 12)]
    new = sorted([*old, *entries], key=lambda entry: struct.unpack_from("<H", entry))
    return tiff[:4] + struct.pack("<L", len(tiff)) + tiff[8:] + struct.pack("<H", len(new)) + b"".join(new) + bytes(4)


def raw_tiff(samples: NDArray[Any], bits: int, *, photometric: int = 1, form: int = 1, compression: int = 1) -> bytes:
    """A little-endian TIFF of the bytes of `samples` (height, width, samples a pixel), which are said to be of `bits`
    each, and of a sample format: 1 unsigned, 2 signed, 3 float."""
    height, width, count = samples.shape
    data = samples.tobytes()
    depths = struct.pack("<HH", bits, bits) if count < 3 else struct.pack("<L", 8 + len(data))
    short, long = (lambda value: struct.pack("<HH", value, 0)), (lambda value: struct.pack("<L", value))
    entries = [
        *((256, 4, 1, long(width)), (257, 4, 1, long(height)), (258, 3, count, depths)),
        *((259, 3, 1, short(compression)), (262, 3, 1, short(photometric)), (273, 4, 1, long(8))),
        *((277, 3, 1, short(count)), (278, 4, 1, long(height)), (279, 4, 1, long(len(data))), (339, 3, 1, short(form))),
    ]
    body = data + struct.pack("<H", bits) * count
    directory = b"".join(struct.pack("<HHL", tag, kind, many) + value for tag, kind, many, value in entries)
    return b"II*\0" + long(8 + len(body)) + body + struct.pack("<H", len(entries)) + directory + bytes(4)


def raw_bmp(masks: tuple[int, ...], *, bits: int = 16, header: int = 56, compression: int = 3) -> bytes:
    """A BMP of 40 x 30 pixels, all zero, whose samples lie where `masks` have bits."""
    pixels = bytes(40 * 30 * bits // 8)
    head = struct.pack("<IiiHHIIiiII", header, 40, 30, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels
