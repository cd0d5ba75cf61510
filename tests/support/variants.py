"""Every combination of format, mode, bit depth, orientation, alpha and animation that Pillow can write.

A variant is the bytes of a file and the picture that it shows: upright, in RGB or RGBA. What is lossless shows what it
was made of; what is not, what Pillow reads. Nothing here knows `clipbatch`.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tests.support.pictures import (
    STORED,
    adobe_xmp,
    app1,
    base,
    chunk,
    deep,
    exif,
    keyed,
    saved,
    stored,
    upright,
    veiled,
    with_chunks,
    with_segments,
    xmp,
)

SIZES = ((150, 100), (97, 131))
_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
Variants = Iterator["Variant"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to store a picture."""

    name: str
    encode: Callable[[], bytes]
    # The upright picture in RGB or RGBA, or what reads it from the file.
    shows: Image.Image | Callable[[bytes], Image.Image]

    def make(self) -> tuple[bytes, Image.Image]:
        """The file and the picture."""
        data = self.encode()
        return data, self.shows if isinstance(self.shows, Image.Image) else self.shows(data)


def variants() -> Variants:
    """All of them, in an order that spreads each kind when every nth is taken."""
    for size in SIZES:
        for kind in (_jpegs, _pngs, _apngs, _webps, _gifs, _bitmaps, _tiffs, _heifs, _others):
            for variant in kind(base(size)):
                name = f"{variant.name} {size[0]}x{size[1]}"
                yield Variant(name=name, encode=variant.encode, shows=variant.shows)


def _read(data: bytes) -> Image.Image:
    """What Pillow reads, upright."""
    with Image.open(io.BytesIO(data)) as image:
        shown = ImageOps.exif_transpose(image)
    return shown.convert("RGBA" if shown.has_transparency_data else "RGB")


def _exact(name: str, shows: Image.Image, image: Image.Image, kind: str, **options: Any) -> Variant:
    return Variant(name=name, encode=partial(saved, image, kind, **options), shows=shows)


def _lossy(name: str, image: Image.Image, kind: str, **options: Any) -> Variant:
    return Variant(name=name, encode=partial(saved, image, kind, **options), shows=_read)


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGBA" if image.mode in ("LA", "RGBA") else "RGB")


def _jpegs(picture: Image.Image) -> Variants:
    forms: dict[str, dict[str, Any]] = {
        "baseline": {},
        "progressive": {"progressive": True},
        "restart": {"restart_marker_blocks": 3},
        "444": {"subsampling": "4:4:4"},
        "422": {"subsampling": "4:2:2"},
        "rgb": {"keep_rgb": True},
    }
    for turn in STORED:
        hows = {
            "exif": [app1(exif(turn, ">" if turn % 2 else "<"))],
            "xmp": [adobe_xmp(xmp(turn, element=turn % 2 == 0))],
            "fill": [app1(exif(turn), fill=turn)],
            "empty": [app1(b"Exif\0\0"), app1(exif(turn))],
            "both": [adobe_xmp(xmp(9 - turn)), app1(exif(turn))],
        }
        for mode in ("RGB", "L", "CMYK"):
            for form in forms if mode == "RGB" else ("baseline", "progressive", "restart"):
                for how in hows if form in ("baseline", "progressive") else ("exif",):

                    def encode(
                        mode: str = mode, form: str = form, segments: Any = hows[how], turn: int = turn
                    ) -> bytes:
                        image = stored(picture, turn).convert(mode)
                        return with_segments(saved(image, "JPEG", quality=90, **forms[form]), *segments)

                    yield Variant(name=f"jpeg {mode} {form} {how} {turn}", encode=encode, shows=_read)


def _pngs(picture: Image.Image) -> Variants:
    gray, palette, few, clear = picture.convert("L"), picture.quantize(64), picture.quantize(14), veiled(picture)
    shades = bytes(min(255, 8 * entry) for entry in range(64))
    shaded = palette.copy()
    shaded.info["transparency"] = shades
    kinds: dict[str, tuple[Image.Image, Image.Image, dict[str, Any]]] = {
        "1": (picture.convert("1"), _rgb(picture.convert("1")), {}),
        "L": (gray, _rgb(gray), {}),
        "LA": (clear.convert("LA"), _rgb(clear.convert("LA")), {}),
        "I;16": (Image.fromarray(deep(picture, 65535).astype(np.uint16)), _rgb(gray), {}),
        "P": (palette, _rgb(palette), {}),
        "P-4": (few, _rgb(few), {"bits": 4}),
        "P-shades": (palette, shaded.convert("RGBA"), {"transparency": shades}),
        "P-key": (palette, keyed(palette, 7), {"transparency": 7}),
        "RGB": (picture, picture, {}),
        "RGBA": (clear, clear, {}),
        "L-key": (gray, keyed(gray, 120), {"transparency": 120}),
    }
    for turn in STORED:
        block = exif(turn)
        profile = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
        hows = {
            "exif": chunk(b"eXIf", exif(turn, ">")[6:]),
            "late": chunk(b"eXIf", exif(turn)[6:]),
            "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(turn)),
            "packed-xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(turn, element=True))),
            "raw": chunk(b"tEXt", b"Raw profile type exif\0" + profile),
            "packed-raw": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        }
        for mode, (image, shows, options) in kinds.items():
            for how, said in hows.items():

                def encode(
                    image: Image.Image = image,
                    turn: int = turn,
                    options: Any = options,
                    how: str = how,
                    said: bytes = said,
                ) -> bytes:
                    return with_chunks(saved(stored(image, turn), "PNG", **options), said, late=how == "late")

                yield Variant(name=f"png {mode} {how} {turn}", encode=encode, shows=shows)


def _apngs(picture: Image.Image) -> Variants:
    for image in (picture, veiled(picture)):
        for first in (False, True):
            more = {"save_all": True, "append_images": [ImageOps.mirror(image)] * 2, "default_image": first}
            yield _exact(f"apng {image.mode} {'default' if first else 'frame'}", image, image, "PNG", **more)


def _webps(picture: Image.Image) -> Variants:
    for image in (picture, veiled(picture)):
        for turn in STORED:
            for how, said in {"exif": {"exif": exif(turn)}, "xmp": {"xmp": xmp(turn)}, "none": {}}.items():
                for lossless in (False, True) if how != "none" or turn == 1 else ():
                    options = {"lossless": lossless, "quality": 80, "method": 0, "exact": True, **said}
                    name = f"webp {image.mode} {'lossless' if lossless else 'lossy'} {how} {turn}"
                    yield _lossy(name, stored(image, turn), "WEBP", **options)
        frames = {"save_all": True, "append_images": [ImageOps.mirror(image)], "method": 0}
        yield _lossy(f"webp {image.mode} animated", image, "WEBP", **frames)


def _gifs(picture: Image.Image) -> Variants:
    palette = picture.quantize(64)
    for image in (palette, picture.convert("L"), picture.convert("1")):
        yield _exact(f"gif {image.mode}", _rgb(image), image, "GIF")
    yield _exact("gif clear", keyed(palette, 5), palette, "GIF", transparency=5, optimize=False)
    for disposal in (0, 1, 2, 3):
        frames = {"save_all": True, "append_images": [ImageOps.mirror(palette)], "disposal": disposal}
        yield _lossy(f"gif animated {disposal}", palette, "GIF", **frames)


def _bitmaps(picture: Image.Image) -> Variants:
    for kind in ("BMP", "DIB"):
        for image in (picture, picture.convert("1"), picture.convert("L"), picture.quantize(64)):
            yield _exact(f"{kind.lower()} {image.mode}", _rgb(image), image, kind)
        yield _lossy(f"{kind.lower()} RGBA", veiled(picture), kind)  # whose fourth byte says nothing


def _tiffs(picture: Image.Image) -> Variants:
    gray, bits, clear = picture.convert("L"), picture.convert("1"), veiled(picture)
    stretched = _rgb(ImageOps.autocontrast(gray))
    kinds: dict[str, tuple[Image.Image, Image.Image]] = {
        **{
            image.mode: (image, _rgb(image))
            for image in (bits, gray, clear.convert("LA"), picture.quantize(64), picture)
        },
        **{image.mode: (image, _rgb(image)) for image in (clear, picture.convert("RGBX"), picture.convert("CMYK"))},
        "LAB": (picture.convert("LAB"), picture.convert("LAB").convert("RGB")),
        "I;16": (Image.fromarray(deep(picture, 65535).astype(np.uint16)), _rgb(gray)),
        "I": (Image.fromarray(deep(picture, 65535).astype(np.int32)), _rgb(gray)),
        "I-255": (Image.fromarray(deep(picture, 255).astype(np.int32)), _rgb(gray)),
        "I-wide": (Image.fromarray(deep(picture, 2**30).astype(np.int32)), stretched),
        "F": (Image.fromarray((deep(picture, 255) / 255).astype(np.float32)), _rgb(gray)),
        "F-255": (Image.fromarray(deep(picture, 255).astype(np.float32)), _rgb(gray)),
        "F-65535": (Image.fromarray(deep(picture, 65535).astype(np.float32)), _rgb(gray)),
        "F-wide": (Image.fromarray((deep(picture, 9e5) - 4e5).astype(np.float32)), stretched),
    }
    for turn in STORED:
        tags = {"tiffinfo": {274: turn}}
        for mode, (image, shows) in kinds.items():
            for packed in _COMPRESSIONS:
                yield _exact(
                    f"tiff {mode} {packed} {turn}", shows, stored(image, turn), "TIFF", compression=packed, **tags
                )
        for packed in ("group3", "group4", "tiff_ccitt"):
            yield _exact(f"tiff 1 {packed} {turn}", _rgb(bits), stored(bits, turn), "TIFF", compression=packed, **tags)
        for image in (picture, gray):
            name, kept = f"tiff {image.mode}", stored(image, turn)
            pages = {"save_all": True, "append_images": [ImageOps.mirror(image)]}
            yield _exact(f"{name} pages {turn}", _rgb(image), kept, "TIFF", **pages, **tags)
            yield _exact(f"{name} big {turn}", _rgb(image), kept, "TIFF", big_tiff=True, **tags)
            packed_as_jpeg = partial(saved, kept, "TIFF", compression="jpeg", **tags)
            yield Variant(name=f"{name} jpeg {turn}", encode=packed_as_jpeg, shows=partial(_untagged, turn))


def _untagged(turn: int, tiff: bytes) -> Image.Image:
    """What a TIFF shows, without Pillow's turning it."""
    entry = partial(struct.pack, "<HHLHH", 274, 3, 1)
    with Image.open(io.BytesIO(tiff.replace(entry(turn, 0), entry(1, 0)))) as image:
        return upright(image.convert("RGB"), turn)


def _heifs(picture: Image.Image) -> Variants:
    for kind, options in {"AVIF": {"speed": 10, "max_threads": 1}, "HEIF": {}}.items():
        for image in (picture, veiled(picture), picture.convert("L")):
            for turn in STORED:
                for how, said in {"exif": {"exif": exif(turn)}, "xmp": {"xmp": xmp(turn)}}.items():
                    name = f"{kind.lower()} {image.mode} {how} {turn}"
                    yield _lossy(name, stored(image, turn), kind, quality=80, **options, **said)
        frames = {"save_all": True, "append_images": [ImageOps.mirror(picture)]}
        yield _lossy(f"{kind.lower()} sequence", picture, kind, **options, **frames)


def _others(picture: Image.Image) -> Variants:
    gray, sixteen = picture.convert("L"), Image.fromarray(deep(picture, 65535).astype(np.uint16))
    for image in (gray, veiled(picture).convert("LA"), picture, veiled(picture), sixteen):
        for raw in (False, True):
            shows = _rgb(gray if image is sixteen else image)
            name = f"jpeg2000 {image.mode} {'codestream' if raw else 'jp2'}"
            yield _exact(name, shows, image, "JPEG2000", no_jp2=raw)
    for image in (picture.convert("1"), gray, picture):
        yield _exact(f"ppm {image.mode}", _rgb(image), image, "PPM")
    for mode, values in {
        "I": deep(picture, 65535).astype(np.int32),
        "F": (deep(picture, 255) / 255).astype("f4"),
    }.items():
        yield _exact(f"ppm {mode}", _rgb(gray), Image.fromarray(values), "PPM")
    for top in (1, 100, 255, 256, 1023, 4095, 16383, 65535):
        values = deep(picture, top)
        shows = Image.fromarray(np.rint(values * 255 / top).astype(np.uint8)).convert("RGB")
        head = f"{picture.width} {picture.height}\n{top}\n".encode()
        packed = values.astype(np.uint8 if top < 256 else ">u2").tobytes()
        plain = " ".join(str(int(value)) for value in values.ravel()).encode()
        yield Variant(name=f"pgm {top}", encode=partial(b"".join, [b"P5\n", head, packed]), shows=shows)
        yield Variant(name=f"plain pgm {top}", encode=partial(b"".join, [b"P2\n", head, plain, b"\n"]), shows=shows)
