"""Real image files for tests: healthy ones of every kind that users have, and ones broken in every way seen so far.

`GOOD` and `BROKEN` are tables from a kind's name to a maker of file bytes; `make_folder` mixes both into a folder and
says what the right answer for each file is. One seed gives the same bytes every time (with the same Pillow). Nothing
here knows `clipbatch`: statuses are plain strings, so that a test compares and does not copy.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rng = np.random.Generator
Good = Callable[[Rng], tuple[str, bytes]]
# Passes of an interlaced PNG: first column, first row, column step, row step.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def photo(rng: Rng, width: int, height: int) -> Image.Image:
    """An RGB picture with a photograph's ingredients: smooth light, hard edges and texture; never symmetric."""
    x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    slope, wave, phase = rng.uniform(-90, 90, (2, 3)), rng.uniform(2, 9, 2), rng.uniform(0, 6)
    light = rng.uniform(70, 185, 3) + slope[0] * x + slope[1] * y + 25 * np.sin(wave[0] * x + wave[1] * y + phase)
    image = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for draw_shape in (draw.ellipse, draw.rectangle, draw.ellipse, draw.rectangle):
        (left, top), (wide, high) = rng.uniform(-0.1, 0.8, 2), rng.uniform(0.1, 0.5, 2)
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        draw_shape((left * width, top * height, (left + wide) * width, (top + high) * height), fill=(red, green, blue))
    noise = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _snap(rng: Rng, mode: str = "RGB") -> Image.Image:
    """A photo of a random everyday shape, small enough to be quick."""
    width, height = rng.integers(96, 320, 2)
    return photo(rng, int(width), int(height)).convert(mode)


def _veiled(rng: Rng, mode: str) -> Image.Image:
    """A photo with an alpha channel that runs from clear to solid."""
    image = _snap(rng, mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _jpeg(rng: Rng) -> bytes:
    return _save(_snap(rng), "JPEG", quality=85, subsampling="4:2:0")


def _patched(jpeg: bytes, markers: bytes, patch: Callable[[bytes], bytes]) -> bytes:
    """The JPEG with another payload, of the same length, in each header segment that has one of `markers`."""
    data, at = bytearray(jpeg), 2
    while data[at + 1] != 0xDA:  # start of scan
        marker, length = struct.unpack_from(">xBH", data, at)
        if marker in markers:
            data[at + 4 : at + 2 + length] = patch(bytes(data[at + 4 : at + 2 + length]))
        at += 2 + length
    return bytes(data)


def _exif(orientation: int, *, thumbnail: bytes = b"", entries_at: int = 8) -> bytes:
    """An Exif block whose first directory, the orientation, stands at `entries_at`, behind the thumbnail if any."""
    thumbnail_entries = (0x103, 3, 1, 6, 0x201, 4, 1, 8, 0x202, 4, 1, len(thumbnail))
    second = struct.pack("<HHHLLHHLLHHLLL", 3, *thumbnail_entries, 0) if thumbnail else b""
    body = (struct.pack("<2sHL", b"II", 42, entries_at) + thumbnail + second).ljust(entries_at, b"\0")
    second_at = 8 + len(thumbnail) if thumbnail else 0
    return b"Exif\0\0" + body + struct.pack("<HHHLLL", 1, 0x112, 3, 1, orientation, second_at)


def _long_exif(rng: Rng) -> bytes:
    """Exif of nearly 64 KiB: a JPEG thumbnail (with an EOI of its own), padding, and only then the orientation, 6."""
    image = _snap(rng)
    exif = _exif(6, thumbnail=_save(image.resize((64, 48)), "JPEG"), entries_at=64_000)
    return _save(image, "JPEG", quality=85, exif=exif, comment=rng.bytes(60_000))


def _ycck(rng: Rng) -> bytes:
    """A CMYK JPEG that holds YCbCr and K, as Photoshop writes it: Pillow writes such samples, we set the flag."""
    inverted = Image.eval(_snap(rng), lambda value: 255 - value).convert("YCbCr")
    planes = [Image.eval(plane, lambda value: 255 - value) for plane in inverted.split()]
    cmyk = Image.merge("CMYK", [*planes, Image.new("L", inverted.size)])
    return _patched(_save(cmyk, "JPEG", quality=90), b"\xee", lambda adobe: adobe[:11] + b"\2")


def _lying(rng: Rng, lie: Callable[[int, int], tuple[int, int]]) -> bytes:
    """A JPEG whose frame header claims another (height, width) than its scan holds."""
    claim = struct.Struct(">HH")
    return _patched(_jpeg(rng), b"\xc0", lambda sof: sof[:1] + claim.pack(*lie(*claim.unpack(sof[1:5]))) + sof[5:])


def _chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def _png_file(width: int, height: int, data: bytes, *, depth: int = 8, interlaced: bool = False) -> bytes:
    """An RGB PNG of the claimed size around any IDAT."""
    header = _chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, 2, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", data) + _chunk(b"IEND")


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16], *, interlaced: bool = False) -> bytes:
    """A PNG of RGB pixels (height, width, 3), of 8 or 16 bits a sample as the array is, every row unfiltered."""
    samples = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = [samples[top::down, left::across] for left, top, across, down in ADAM7] if interlaced else [samples]
    raw = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    depth = 8 * samples.itemsize
    return _png_file(pixels.shape[1], pixels.shape[0], zlib.compress(raw), depth=depth, interlaced=interlaced)


def _deep(rng: Rng) -> NDArray[np.uint16]:
    """RGB pixels of a photo in 16 bits, whose low bytes say something too."""
    pixels = np.asarray(_snap(rng)).astype(np.uint16) * 256
    return pixels + rng.integers(0, 256, pixels.shape, dtype=np.uint16)


def _good(suffix: str, make: Callable[[Rng], bytes]) -> Good:
    return lambda rng: (suffix, make(rng))


def _saved(suffix: str, kind: str, mode: str = "RGB", size: tuple[int, int] | None = None, **options: Any) -> Good:
    """A maker of photos that Pillow saves as `kind` with `options`, at `size` (width, height) where one is given."""
    return lambda rng: (suffix, _save(photo(rng, *size).convert(mode) if size else _snap(rng, mode), kind, **options))


# Healthy files, a kind a line: a generator in, (file suffix, file bytes) out.
GOOD: dict[str, Good] = {
    "jpeg": _good(".jpg", _jpeg),
    "jpeg-444": _saved(".jpeg", "JPEG", quality=92, subsampling="4:4:4"),
    "jpeg-progressive": _saved(".jpg", "JPEG", quality=85, progressive=True),
    "jpeg-gray": _saved(".jpg", "JPEG", "L", quality=85),
    "jpeg-cmyk": _saved(".jpg", "JPEG", "CMYK", quality=90),
    "jpeg-ycck": _good(".jpg", _ycck),
    "jpeg-restart": _saved(".JPG", "JPEG", quality=85, restart_marker_blocks=5),
    "jpeg-trailing": _good(".jpg", lambda rng: _jpeg(rng) + rng.bytes(int(rng.integers(1, 2000)))),
    "jpeg-exif-long": _good(".jpg", _long_exif),
    **{f"jpeg-exif-{n}": _saved(".jpg", "JPEG", quality=85, exif=_exif(n)) for n in range(1, 9)},
    "png": _saved(".png", "PNG"),
    "png-gray": _saved(".png", "PNG", "L"),
    "png-palette": _saved(".png", "PNG", "P"),
    "png-palette-clear": _saved(".png", "PNG", "P", transparency=bytes(range(0, 256, 2))),
    "png-rgba": _good(".png", lambda rng: _save(_veiled(rng, "RGB"), "PNG")),
    "png-gray-alpha": _good(".png", lambda rng: _save(_veiled(rng, "L"), "PNG")),
    "png-1bit": _saved(".png", "PNG", "1"),
    "png-gray16": _good(".png", lambda rng: _save(Image.fromarray(_deep(rng)[..., 1].copy()), "PNG")),
    "png-rgb16": _good(".png", lambda rng: _png(_deep(rng))),
    "png-interlaced": _good(".png", lambda rng: _png(np.asarray(_snap(rng)), interlaced=True)),
    "webp": _saved(".webp", "WEBP", quality=80, method=0),
    "webp-lossless": _saved(".webp", "WEBP", lossless=True, quality=20, method=0),
    "webp-alpha": _good(".webp", lambda rng: _save(_veiled(rng, "RGB"), "WEBP", quality=80, method=0)),
    "gif": _saved(".gif", "GIF", "P"),
    "gif-animated": _good(".gif", lambda rng: _save(_snap(rng), "GIF", save_all=True, append_images=[_snap(rng)])),
    "bmp": _saved(".bmp", "BMP"),
    "tiff": _saved(".tif", "TIFF"),
    "avif": _saved(".avif", "AVIF", quality=70, speed=10, max_threads=1),
    "jpeg2000": _saved(".jp2", "JPEG2000"),
    "ppm": _saved(".ppm", "PPM"),
    "png-1x1": _saved(".png", "PNG", size=(1, 1)),
    "jpeg-1x1": _saved(".jpg", "JPEG", size=(1, 1)),
    "jpeg-2x3": _saved(".jpg", "JPEG", size=(2, 3)),
    "png-1x400": _saved(".png", "PNG", size=(1, 400)),
    "jpeg-1500x12": _saved(".jpg", "JPEG", size=(1500, 12)),
    "jpeg-641x479": _saved(".jpg", "JPEG", size=(641, 479)),
}


@dataclass(frozen=True, slots=True)
class Broken:
    """One way for a file to be bad."""

    suffix: str
    make: Callable[[Rng], bytes]
    # The right answers, out of: empty, corrupt, truncated, unsupported, too_large, ok.
    statuses: frozenset[str]


def _broken(suffix: str, data: bytes | Callable[[Rng], bytes], *statuses: str) -> Broken:
    return Broken(suffix, (lambda _: data) if isinstance(data, bytes) else data, frozenset(statuses))


def _flip_bits(rng: Rng, kind: str) -> bytes:
    """A good file of `kind` whose second half has one flipped bit in every 100 bytes."""
    data = bytearray(GOOD[kind](rng)[1])
    for at in map(int, rng.integers(len(data) // 2, len(data) - 20, len(data) // 200)):
        flipped = data[at] ^ (1 << int(rng.integers(8)))
        if 0xFF not in (data[at - 1], data[at], flipped):  # a JPEG keeps its markers
            data[at] = flipped
    return bytes(data)


def _cut(kind: str, *statuses: str, share: float = 0.5, size: int | None = None) -> Broken:
    """A good file of `kind` that ends after `size` bytes or, without one, after its first `share`."""

    def make(rng: Rng) -> bytes:
        _, data = GOOD[kind](rng)
        return data[: int(len(data) * share) if size is None else size]

    return _broken(GOOD[kind](np.random.default_rng(0))[0], make, *statuses)


_MP4 = struct.pack(">L4s4sL4s4sL4s", 24, b"ftyp", b"isom", 512, b"isom", b"mp41", 4008, b"mdat") + bytes(4000)
_BOMB = _png_file(60_000, 60_000, zlib.compress(bytes(900_000)))

# Bad files, a way a line. One that is cut off inside its headers may be called truncated or corrupt.
BROKEN: dict[str, Broken] = {
    "empty": _broken(".jpg", b"", "empty"),
    "zeros": _broken(".jpg", bytes(4096), "unsupported"),  # what a file system leaves after a power cut
    "html": _broken(".jpg", b"<!DOCTYPE html>\n<html><body><h1>403 Forbidden</h1></body></html>\n", "unsupported"),
    "text": _broken(".png", b"version https://git-lfs.github.com/spec/v1\nsize 12345\n", "unsupported"),
    "noise": _broken(".jpg", lambda rng: bytes(rng.integers(128, 256, 100, dtype=np.uint8)), "unsupported"),
    "zip": _broken(".jpg", b"PK\3\4\x0a".ljust(26, b"\0") + b"\x09\0\0\0photo.jpg", "unsupported"),
    "mp4": _broken(".jpg", _MP4, "unsupported"),
    "pdf": _broken(".jpg", b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n", "unsupported"),
    "svg": _broken(".jpg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>\n', "unsupported"),
    "jpeg-half": _cut("jpeg", "truncated"),
    "jpeg-95": _cut("jpeg", "truncated", share=0.95),
    "jpeg-progressive-half": _cut("jpeg-progressive", "truncated"),
    "jpeg-20-bytes": _cut("jpeg", "truncated", "corrupt", size=20),
    "jpeg-200-bytes": _cut("jpeg", "truncated", "corrupt", size=200),
    "jpeg-exif-only": _broken(".jpg", b"\xff\xd8\xff\xe1\x00\x22" + _exif(6), "truncated", "corrupt"),
    "jpeg-garbage": _broken(".jpg", lambda rng: b"\xff\xd8\xff\xdb\0C\xff" + rng.bytes(3000) + b"\xff\xd9", "corrupt"),
    "jpeg-0x0": _broken(".jpg", lambda rng: _lying(rng, lambda height, width: (0, 0)), "corrupt"),
    "jpeg-bits": _broken(".jpg", lambda rng: _flip_bits(rng, "jpeg"), "corrupt", "ok"),
    "jpeg-tables": _broken(".jpg", lambda rng: _patched(_jpeg(rng), b"\xdb\xc4", lambda t: bytes(len(t))), "corrupt"),
    "jpeg-too-tall": _broken(".jpg", lambda rng: _lying(rng, lambda h, w: (2 * h, w)), "truncated", "corrupt", "ok"),
    "jpeg-bomb": _broken(".jpg", lambda rng: _lying(rng, lambda height, width: (65_000, 65_000)), "too_large"),
    "png-half": _cut("png", "truncated"),
    # Every pixel is there and passes zlib's checksum; only the end mark is missing, so its label is the true one.
    "png-no-end": _broken(".png", lambda rng: GOOD["png"](rng)[1][:-12], "ok"),
    "png-bits": _broken(".png", lambda rng: _flip_bits(rng, "png-interlaced"), "corrupt"),
    "png-zlib": _broken(".png", lambda rng: _png_file(160, 120, b"\xff" + rng.bytes(5000)), "corrupt"),
    "png-bomb": _broken(".png", _BOMB, "too_large"),
    "webp-half": _cut("webp", "truncated"),
    "gif-header": _cut("gif", "truncated", "corrupt", size=13),
    "avif-half": _cut("avif", "truncated"),
    "tiff-half": _cut("tiff", "truncated"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One file that `make_folder` wrote."""

    # Its path inside the folder, with slashes.
    name: str
    # Its key in `GOOD` or `BROKEN`.
    kind: str
    # The right answers; {"ok"} for a healthy file.
    statuses: frozenset[str]


def make_folder(folder: Path, count: int, *, seed: int, bad_fraction: float = 1 / 3) -> list[Expected]:
    """Write `count` files, `a/00000-<kind><suffix>` and so on, good and bad ones mixed by chance.

    Bad files come from all of `BROKEN` evenly; of the good ones 60% are ordinary JPEGs, no two alike, and the rest come
    from all of `GOOD` evenly. Returned in the order of a depth-first walk with names in byte order.
    """
    rng = np.random.default_rng(seed)
    bad = round(count * bad_fraction)
    ordinary = round((count - bad) * 0.6)
    broken, good = ([str(kind) for kind in rng.permutation(list(table))] for table in (BROKEN, GOOD))
    kinds = [*islice(cycle(broken), bad), *["jpeg"] * ordinary]
    kinds += islice(cycle(good), count - len(kinds))
    album = [photo(rng, 400, 300) for _ in range(16)]

    @cache
    def payload(kind: str, variant: int) -> tuple[str, bytes]:
        own = np.random.default_rng([seed, variant, zlib.crc32(kind.encode())])
        return (BROKEN[kind].suffix, BROKEN[kind].make(own)) if kind in BROKEN else GOOD[kind](own)

    def ordinary_jpeg() -> tuple[str, bytes]:
        left, top, width, height = (int(value) for value in rng.integers((0, 0, 96, 96), (150, 100, 250, 200)))
        piece = album[rng.integers(len(album))].crop((left, top, left + width, top + height))
        return ".jpg", _save(piece, "JPEG", quality=85)

    expected: list[Expected] = []
    for number, kind in enumerate(str(kind) for kind in rng.permutation(kinds)):
        suffix, data = ordinary_jpeg() if kind == "jpeg" else payload(kind, int(rng.integers(3)))
        name = f"{('a', 'b', 'b/c')[rng.integers(3)]}/{number:05}-{kind}{suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        statuses = BROKEN[kind].statuses if kind in BROKEN else frozenset({"ok"})
        expected.append(Expected(name=name, kind=kind, statuses=statuses))
    return sorted(expected, key=lambda one: one.name.split("/"))
