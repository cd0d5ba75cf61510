"""Errors of files that cannot be decoded: damage, or an intact kind that no decoder here knows, with its name."""

import gzip
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from clipbatch.types import Decoded, Reject
from tests.support.decoding import DECODERS, decoded, open_clips
from tests.support.pictures import app1, base, chunk, exif, raw_bmp, raw_tiff, saved, stored, with_chunks, with_segments

JPEG = saved(base(), "JPEG", quality=95, subsampling=0)
PNG = saved(base(), "PNG")
RNG = np.random.default_rng(0)


def frame(marker: int, bits: int = 8) -> bytes:
    """The JPEG with a frame header of another kind (ITU-T T.81, B.2.2)."""
    data, at = bytearray(JPEG), JPEG.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    return bytes(data)


def lossless_jpeg() -> bytes:
    """A real one (ITU-T T.81, annex H): 8 bits of gray, each predicted by its left neighbour."""
    gray = np.asarray(base((40, 30)).convert("L")).astype(int)
    before = np.roll(gray, 1, axis=1)
    before[1:, 0], before[0, 0] = gray[:-1, 0], 128
    bits = ""
    for difference in (gray - before).ravel():
        size = int(abs(difference)).bit_length()
        bits += f"{size:04b}"  # every size has a code of four bits
        if size:
            bits += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    codes = bytes([0, 0, 0, 10, *[0] * 12, *range(10)])
    segments = [
        b"\xff\xc3" + struct.pack(">HBHHB3B", 11, 8, 30, 40, 1, 1, 0x11, 0),
        b"\xff\xc4" + struct.pack(">HB", 3 + len(codes), 0) + codes,
        b"\xff\xda" + struct.pack(">HB2B3B", 8, 1, 1, 0, 1, 0, 0),
    ]
    return b"\xff\xd8" + b"".join(segments) + packed.replace(b"\xff", b"\xff\0") + b"\xff\xd9"


def samples(count: int, kind: Any = np.uint8) -> Any:
    return RNG.integers(0, 200, (30, 40, count)).astype(kind)


def heif(item: bytes) -> bytes:
    """A HEIC file whose picture is said to be coded otherwise."""
    data = saved(base(), "HEIF", quality=90)
    assert b"hvc1" in data
    return data.replace(b"hvc1", item, 1)


# Files of kinds that no decoder here knows, by what has to be said of them (before a comma).
UNKNOWN = {
    "12-bit JPEG": frame(0xC1, 12),
    "12-bit JPEG, progressive": frame(0xC2, 12),
    "hierarchical JPEG": frame(0xC5),
    "lossless JPEG": frame(0xCB),
    "JPEG-LS": frame(0xF7),
    "12-bit TIFF": raw_tiff(RNG.integers(0, 255, (30, 60, 3)).astype(np.uint8), 8)
    .replace(struct.pack("<HHH", 8, 8, 8), struct.pack("<HHH", 12, 12, 12))
    .replace(struct.pack("<HHLL", 256, 4, 1, 60), struct.pack("<HHLL", 256, 4, 1, 40)),
    "14-bit TIFF": raw_tiff(samples(1, np.uint16), 14),
    "24-bit TIFF": raw_tiff(samples(1, np.uint32), 24),
    "16-bit float TIFF": raw_tiff(samples(1, np.float16), 16, form=3),
    "64-bit float TIFF": raw_tiff(samples(1, np.float64), 64, form=3),
    "32-bit float TIFF": raw_tiff(samples(3, np.float32), 32, form=3, photometric=2),
    "TIFF of 7 samples": raw_tiff(samples(7), 8),
    "compression 34712": raw_tiff(samples(3), 8, photometric=2, compression=34712),
    "BMP bitfields": raw_bmp((0xF00, 0xF0, 0xF, 0xF000)),
    "BMP bitfields, without alpha": raw_bmp((0xF00, 0xF0, 0xF), header=40),
    "BMP bitfields, of 10 bits": raw_bmp((0x3FF00000, 0xFFC00, 0x3FF), bits=32, header=40),
    "BMP compression": raw_bmp((), bits=24, header=40, compression=4),
    "BMP pixel depth": raw_bmp((), bits=2, header=40, compression=0),
    "uncompressed HEIF": heif(b"unci"),
    "HEIF with VVC": heif(b"vvc1"),
    "HEIF with JPEG 2000": heif(b"j2k1"),
    "Photoshop": b"8BPS\0\1" + bytes(100) + JPEG,
    "PSD": b"8BPS\0\1" + bytes(100),
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "JPEG XL, in a box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(50),
    "gzipped image (jpeg)": gzip.compress(JPEG),
    "gzipped image (png)": gzip.compress(PNG)[:5000],
    "a JPEG begins at byte 65537": bytes(65537) + JPEG,
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_intact_file_of_an_unknown_kind_is_unsupported_and_named(decoder: str) -> None:
    _, outcomes = decoded(UNKNOWN.values(), decoder)
    for name, outcome in zip(UNKNOWN, outcomes, strict=True):
        assert isinstance(outcome, Reject), (name, outcome)
        assert outcome.status == "unsupported", (name, outcome)
        assert name.partition(",")[0] in outcome.error


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_lossless_jpeg_is_decoded_correctly_or_named(decoder: str) -> None:
    """libjpeg-turbo 3 reads them where its caller lets it."""
    (pixels,), (outcome,) = decoded([lossless_jpeg()], decoder)
    if isinstance(outcome, Reject):
        assert outcome.status == "unsupported"
        assert "lossless JPEG" in outcome.error
    else:
        assert np.abs(pixels.astype(int) - open_clips(base((40, 30)).convert("L").convert("RGB"))).mean() < 1


# Files that are damaged, with their status.
DAMAGED = {
    "a bit of the frame": (frame(0xC1, 77), "corrupt"),
    "12 bits, cut off": (frame(0xC1, 12)[:-2000], "corrupt"),
    "a TIFF cut off": (raw_tiff(samples(3), 8, photometric=2)[:2000], "corrupt"),
    "12-bit TIFF of too few bytes": (raw_tiff(samples(1), 14), "corrupt"),
    "LZW of nonsense": (raw_tiff(samples(3), 8, photometric=2, compression=5), "corrupt"),
    "BMP of overlapping masks": (raw_bmp((0xFF0, 0xF0, 0xF)), "corrupt"),
    "BMP of 7 bits": (raw_bmp((), bits=7, header=40, compression=0), "corrupt"),
    "BMP cut off": (raw_bmp((0xF00, 0xF0, 0xF, 0xF000))[:500], "truncated"),
    "HEIC cut off": (heif(b"unci")[:-500], "truncated"),
    "HEIC damaged": (heif(b"zzzz"), "corrupt"),
    "PNG header": (PNG[:16] + b"\xff" * 4 + PNG[20:], "corrupt"),
    "PNG pixels": (
        with_chunks(PNG[:60] + bytes(200) + PNG[260:], chunk(b"zTXt", b"C\0\0" + zlib.compress(b"x"))),
        "corrupt",
    ),
    "PNG cut off": (with_chunks(PNG, chunk(b"eXIf", b"junk"))[:-4000], "truncated"),
    "JPEG cut off": (with_segments(JPEG, app1(b"Exif\0\0junk"))[:-4000], "truncated"),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_damaged_file_is_not_called_an_unknown_kind(decoder: str) -> None:
    _, outcomes = decoded([data for data, _ in DAMAGED.values()], decoder)
    for (name, (_, status)), outcome in zip(DAMAGED.items(), outcomes, strict=True):
        assert isinstance(outcome, Reject), (name, outcome)
        assert outcome.status == status, (name, outcome)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_whole_jpeg_behind_other_bytes_is_the_picture(decoder: str) -> None:
    turned = with_segments(saved(stored(base(), 6), "JPEG", quality=95, subsampling=0), app1(exif(6)))
    headers = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"
    befores = [b"\n", b"\xef\xbb\xbf", headers, bytes(65_535), b"\xff\xd8\xff" * 3 + b"no image", b"x" * 65_536]
    files = [*(before + JPEG for before in befores), headers + JPEG + b"\r\n--part--\r\n", b"\n" + turned]
    pixels_BHWC, outcomes = decoded(files, decoder)
    for pixels, outcome in zip(pixels_BHWC, outcomes, strict=True):
        assert isinstance(outcome, Decoded), outcome
        assert (outcome.width, outcome.height) == base().size
        assert np.abs(pixels.astype(int) - open_clips(base())).mean() <= 2
    cut, zipped = headers + JPEG[:-3000], b"PK\3\4" + bytes(26) + JPEG + b"PK\1\2" + bytes(40)
    _, (first, second) = decoded([cut, zipped], decoder)
    assert isinstance(first, Reject)
    assert isinstance(second, Reject)
    assert (first.status, second.status) == ("truncated", "unsupported")
    assert first.error.startswith(f"{len(headers)} bytes before the beginning of a JPEG")
    assert second.error == f"not an image of a known kind: starts with {zipped[:16]!r}"
