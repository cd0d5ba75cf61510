"""Metadata decide how a picture is turned, and never whether it is good."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipbatch.stages.decode.header import inspect
from clipbatch.stages.metadata import without_metadata
from clipbatch.stages.orientation import _plain_orientation, jpeg_orientation, jpeg_segments, kind_of, orientation_in
from clipbatch.types import Decoded
from tests.support.decoding import DECODERS, decoded, open_clips
from tests.support.pictures import (
    adobe_xmp,
    app1,
    base,
    chunk,
    exif,
    saved,
    segment,
    stored,
    with_chunks,
    with_segments,
    with_tags,
    xmp,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged metadata, which clipbatch ignores
BROKEN_EXIF = {
    "junk": b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03\0\0 no directory",
    "header only": b"Exif\0\0II",
    "far away": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "cut off": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
    "empty": b"Exif\0\0",
}
TEXT = zlib.compress(b"long text " * 200_000)


def _jpegs() -> dict[str, bytes]:
    """Healthy JPEGs whose metadata are broken, or stand where they are seldom seen."""
    jpeg = saved(base(), "JPEG", quality=95, subsampling=0)
    segments = {
        "short JFIF": segment(0xE0, b"JFIF"),
        "short Adobe": segment(0xEE, b"Adobe"),
        "short ICC": segment(0xE2, b"ICC_PROFILE\0"),
        "Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\4ab"),
        "broken MPF": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\x01\xb0\4\0\1\0\0\0\5\0\0\0\0\0\0\0"),
        "short MPF": segment(0xE2, b"MPF\0junk"),
        "empty comment": segment(0xFE, b""),
        "fill bytes": b"\xff" * 5000,
        "a marker alone": b"\xff\xd0",
        **{f"Exif {name}": app1(block) for name, block in BROKEN_EXIF.items()},
        "XMP of no text": adobe_xmp(bytes(range(256))),
    }
    made = {name: with_segments(jpeg, extra) for name, extra in segments.items()}
    tables = jpeg.index(b"\xff\xdb")
    return made | {"bytes between": jpeg[:tables] + b"\1\2\3" + jpeg[tables:]}


def _pngs() -> dict[str, bytes]:
    png, made = saved(base(), "PNG"), dict[str, bytes]()
    chunks = {
        "zTXt": chunk(b"zTXt", b"Comment\0\0" + TEXT),
        "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + TEXT),
        "iCCP": chunk(b"iCCP", b"profile\0\0" + TEXT),
        "zTXt of another method": chunk(b"zTXt", b"Comment\0\x09abc"),
        "iCCP of another method": chunk(b"iCCP", b"profile\0\x09abc"),
        **{f"Exif {name}": chunk(b"eXIf", block[6:]) for name, block in BROKEN_EXIF.items()},
    }
    for name in (b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"bKGD", b"eXIf", b"abCd"):
        chunks[f"{name!r} with a wrong checksum"] = chunk(name, b"some\0\0bytes" * 4, crc=1)
        chunks[f"{name!r} of nothing"] = chunk(name, b"")
    made["much tEXt"] = with_chunks(png, *(chunk(b"tEXt", b"%d\0" % number + bytes(2**20)) for number in range(70)))
    for name, extra in chunks.items():
        made[name], made[f"{name}, late"] = with_chunks(png, extra), with_chunks(png, extra, late=True)
    return made


def _tiffs() -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for compression in ("raw", "tiff_lzw"):
        tiff = saved(base(), "TIFF", compression=compression)
        entries = {
            "Exif far away": struct.pack("<HHLL", 34665, 4, 1, 0xFFFFFFF0),
            "Exif of a number": struct.pack("<HHLf", 34665, 11, 1, 3.5),
            "GPS before the file": struct.pack("<HHLl", 34853, 9, 1, -5),
            "XMP of a number": struct.pack("<HHLL", 700, 4, 1, 7),
            "resolution of a text": struct.pack("<HHL4s", 282, 2, 4, b"abc\0"),
        }
        made |= {f"{name}, {compression}": with_tags(tiff, entry) for name, entry in entries.items()}
    return made


def _others() -> dict[str, bytes]:
    made, described = dict[str, bytes](), Image.Exif()
    described[270] = "a description"
    room = described.tobytes()[6:]
    for name, block in BROKEN_EXIF.items():
        made[f"webp {name}"] = saved(base(), "WEBP", lossless=True, exif=block)
        for kind in ("AVIF", "HEIF"):  # of which encoders read the Exif, so it is broken afterwards
            data = saved(base(), kind, quality=95, exif=described)
            assert room in data
            made[f"{kind} {name}"] = data.replace(room, block[6:].ljust(len(room), b"\0")[: len(room)])
    return made


@pytest.mark.parametrize("decoder", DECODERS)
def test_metadata_never_decide_whether_a_picture_is_good(decoder: str) -> None:
    files = {
        f"{kind} {name}": data
        for kind, made in {"jpeg": _jpegs(), "png": _pngs(), "tiff": _tiffs(), "": _others()}.items()
        for name, data in made.items()
    }
    pixels_BHWC, outcomes = decoded(files.values(), decoder)
    expected = open_clips(base()).astype(int)
    for name, pixels, outcome in zip(files, pixels_BHWC, outcomes, strict=True):
        assert isinstance(outcome, Decoded), (name, outcome)
        assert (outcome.width, outcome.height) == base().size, name
        assert np.abs(pixels - expected).mean() <= 2, name


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_broken_exif_block_is_ignored_and_xmp_is_used(decoder: str) -> None:
    turned, broken = stored(base(), 6), BROKEN_EXIF["junk"]
    jpeg, png = saved(turned, "JPEG", quality=95, subsampling=0), saved(turned, "PNG")
    packet = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6) + b" " * 2_000_000))
    files = [
        with_segments(jpeg, app1(broken), adobe_xmp(xmp(6))),
        with_chunks(png, chunk(b"eXIf", broken[6:]), packet),
        with_chunks(png, packet, chunk(b"iCCP", b"profile\0\0" + TEXT), late=True),
        saved(turned, "WEBP", lossless=True, exif=broken, xmp=xmp(6)),
    ]
    pixels_BHWC, outcomes = decoded(files, decoder)
    for pixels, outcome in zip(pixels_BHWC, outcomes, strict=True):
        assert isinstance(outcome, Decoded), outcome
        assert (outcome.width, outcome.height) == base().size
        assert np.abs(pixels.astype(int) - open_clips(base())).mean() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_equals_pillows_for_any_mixture(kind: str) -> None:
    """Random mixtures of Exif (of any type, often broken or empty) and XMP, against `ImageOps.exif_transpose`."""
    rng, plain, seen = np.random.default_rng(8), saved(base((40, 20)), kind), set()
    marked = stored(base((40, 20)), 1)
    for _ in range(600):
        parts = []
        for _ in range(rng.integers(0, 4)):
            value, sort = int(rng.integers(0, 10)), int(rng.choice([1, 3, 3, 3, 4, 9]))
            block = exif(0, ">")[:-10] + struct.pack(">HL", sort, 1)
            block += {1: bytes([value, 0, 0, 0]), 3: struct.pack(">HH", value, 0)}.get(sort, struct.pack(">L", value))
            packet = xmp(value, element=bool(rng.integers(2)))
            keyword, profile = b"Raw profile type exif\0", b"\nexif\n 32\n" + block.hex().encode()
            choices = {
                "JPEG": [app1(block), adobe_xmp(packet), app1(b"Exif\0\0"), segment(0xFE, block)],
                "PNG": [
                    chunk(b"eXIf", block[6:]),
                    chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),
                    chunk(b"tEXt", keyword + profile),
                    chunk(b"zTXt", keyword + b"\0" + zlib.compress(profile)),
                    chunk(b"tEXt", b"exif\0" + block),
                ],
            }[kind]
            parts.append(choices[rng.integers(len(choices))])
        data = with_segments(plain, *parts) if kind == "JPEG" else with_chunks(plain, *parts)
        with Image.open(io.BytesIO(data)) as image:
            theirs = ImageOps.exif_transpose(image)
            found = image.getexif().get(0x112, 1)
        ours = orientation_in(data, kind_of(data))
        assert ours == (found if found in range(1, 9) else 1), parts
        header = inspect(bytearray(data))
        assert header
        assert header.orientation == ours
        assert (theirs.size != marked.size) == (ours >= 5)
        seen.add(ours)
    assert seen == set(range(1, 9))


def test_a_file_without_its_metadata_shows_the_same_picture() -> None:
    gray = base().convert("L")
    for kind, options in {"JPEG": {"exif": exif(6), "comment": b"x"}, "PNG": {"exif": exif(6)}, "TIFF": {}}.items():
        for image in (base(), gray, base().convert("CMYK")):
            if kind == "PNG" and image.mode == "CMYK":
                continue
            tags = {"tiffinfo": {270: "a description", 274: 6}} if kind == "TIFF" else {}
            data = saved(image, kind, **options, **tags)
            bare = without_metadata(data, kind_of(data))
            assert bare is not None
            with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(bare)) as after:
                np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
                assert kind == "TIFF" or 0x112 not in after.getexif()


def test_without_metadata_keeps_what_cut_off_and_damaged_files_need() -> None:
    """Whatever the bytes are, nothing is raised."""
    rng = np.random.default_rng(3)
    for kind in ("JPEG", "PNG", "TIFF", "AVIF"):
        data = saved(base((40, 20)), kind)
        for _ in range(200):
            broken = bytearray(data[: rng.integers(4, len(data))])
            for at in rng.integers(4, len(broken) + 1, 5):
                broken[at - 1] = int(rng.integers(256))
            without_metadata(broken, kind_of(broken))
            assert orientation_in(broken, kind_of(broken)) in (None, *range(1, 9))
            inspect(broken)


def test_the_shipped_photographs_are_not_turned(photos: Path) -> None:
    for path in sorted(photos.glob("*.jpg"))[:20]:
        header = inspect(bytearray(path.read_bytes()))
        with Image.open(path) as image:
            assert header
            assert header.orientation == image.getexif().get(0x112, 1)


def test_the_short_way_to_an_orientation_agrees_with_pillow_whatever_the_directory_holds() -> None:
    rng, jpeg, short = np.random.default_rng(16), saved(base(), "JPEG"), 0
    for number in range(1500):
        exif_tags = Image.Exif()
        exif_tags.endian = "<>"[number % 2]
        for tag, value in {
            270: "a text " * 3,
            271: "Maker",
            272: "M",
            282: 72.0,
            305: "Software 1.0",
            700: b"x",
        }.items():
            if rng.random() < 0.6:
                exif_tags[tag] = value
        if rng.random() < 0.8:
            exif_tags[274] = int(rng.integers(0, 10))
        block = bytearray(exif_tags.tobytes())
        for _ in range(int(rng.integers(0, 3))):
            block[int(rng.integers(6, min(len(block), 100)))] = int(rng.choice([0, 1, 2, 3, 4, 8, 18, 255]))
        if rng.random() < 0.2:
            del block[int(rng.integers(6, len(block))) :]
        data = bytearray(with_segments(jpeg, app1(bytes(block))))
        pillows = Image.Exif()
        try:
            pillows.load(bytes(block))
            expected = pillows.get(274)
        except Exception:  # Pillow's parser raises all kinds
            expected = None
        expected = int(expected) if expected in range(1, 9) else 1
        assert jpeg_orientation(data, jpeg_segments(data)) == expected, bytes(block).hex()
        short += _plain_orientation(block, 6, len(block)) is not None
    assert short > 500
