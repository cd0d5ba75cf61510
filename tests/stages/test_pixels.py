"""The pixels that a model gets: the same with every decoder, and however the file stores them."""

import io
import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipbatch.config import DecodeSettings
from clipbatch.errors import InputError
from clipbatch.types import Decoded
from tests.support.decoding import DECODERS, decoded, embedded, open_clips
from tests.support.pictures import base, chunk, deep, keyed, raw_tiff, saved, veiled, with_chunks
from tests.support.variants import Variant, variants

EVERY_NTH = 1 if "CLIPBATCH_ALL_VARIANTS" in os.environ else 23


@pytest.fixture(scope="module")
def sample() -> list[tuple[Variant, bytes, Image.Image]]:
    return [(variant, *variant.make()) for variant in list(variants())[::EVERY_NTH]]


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_variant_of_a_picture_is_what_open_clip_makes_of_it(
    sample: list[tuple[Variant, bytes, Image.Image]], decoder: str
) -> None:
    worst: dict[str, float] = {}
    for start in range(0, len(sample), 128):
        group = sample[start : start + 128]
        pixels_BHWC, outcomes = decoded([data for _, data, _ in group], decoder)
        theirs_BHWC = np.stack([open_clips(picture) for _, _, picture in group])
        cosine_B = (embedded(pixels_BHWC) * embedded(theirs_BHWC)).sum(axis=1)
        for (variant, _, picture), outcome, cosine in zip(group, outcomes, cosine_B, strict=True):
            assert isinstance(outcome, Decoded), (variant.name, outcome)
            assert (outcome.width, outcome.height) == picture.size, variant.name
            worst[variant.name] = float(cosine)
    print(f"{decoder}: {len(worst)} variants, cosine at least {min(worst.values()):.5f}")
    assert {name: cosine for name, cosine in worst.items() if cosine < 0.995} == {}


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(150, 100), (64, 80), (64, 64), (30, 40)])
@pytest.mark.parametrize("kind", ["RGBA", "LA"])
def test_a_transparent_picture_is_as_open_clip_has_it_also_where_nothing_is_resized(
    kind: str, size: tuple[int, int], mode: str
) -> None:
    picture = veiled(base(size)).convert(kind)
    (pixels,), _ = decoded([saved(picture, "PNG")], "pil", mode=mode)
    assert np.abs(pixels.astype(int) - open_clips(picture, mode=mode)).mean() <= 0.2


def _see_through() -> dict[str, tuple[bytes, Image.Image]]:
    """Files with every sort of transparency, and what they hold as RGBA."""
    picture, gray, palette = base(), base().convert("L"), base().quantize(64)
    clear = veiled(picture)
    red = np.asarray(picture)[..., 0]
    few = Image.fromarray((red // 64).astype(np.uint8) * 85)  # four grays
    colours = Image.merge("RGB", (few, few.rotate(180), few))
    pair = tuple(int(value) for value in np.asarray(colours)[50, 75])
    hidden = np.where((np.asarray(colours) == pair).all(axis=2), 0, 255).astype(np.uint8)
    deep_gray = deep(picture, 65535).astype(np.uint16)
    key = int(deep_gray[50, 75])
    sixteen = Image.fromarray(np.where(deep_gray == key, 0, 255).astype(np.uint8))
    bits = picture.convert("1")
    made = {
        "RGBA": (saved(clear, "PNG"), clear),
        "LA": (saved(clear.convert("LA"), "PNG"), clear.convert("LA").convert("RGBA")),
        "palette": (saved(palette, "PNG", transparency=7), keyed(palette, 7)),
        "gray key": (saved(gray, "PNG", transparency=120), keyed(gray, 120)),
        "colour key": (
            saved(colours, "PNG", transparency=pair),
            Image.merge("RGBA", (*colours.split(), Image.fromarray(hidden))),
        ),
        "1-bit key": (saved(bits, "PNG", transparency=0), keyed(bits, False)),
        "16-bit key": (
            with_chunks(saved(Image.fromarray(deep_gray), "PNG"), chunk(b"tRNS", struct.pack(">H", key))),
            Image.merge("RGBA", (*gray.convert("RGB").split(), sixteen)),
        ),
        "2-bit gray key": (_two_bits(few, 3), keyed(few, 255)),
        "gif": (saved(palette, "GIF", transparency=5, optimize=False), keyed(palette, 5)),
        "webp": (saved(clear, "WEBP", lossless=True, exact=True), clear),
        "tiff": (saved(clear, "TIFF", compression="tiff_lzw"), clear),
        "jpeg2000": (saved(clear, "JPEG2000"), clear),
    }
    return {name: (data, picture) for name, (data, picture) in made.items()}


def _two_bits(gray: Image.Image, key: int) -> bytes:
    """A PNG of two bits a pixel, with `key` transparent; the width is a multiple of 4 after padding."""
    samples = np.asarray(gray) // 85
    padded = np.pad(samples, ((0, 0), (0, -samples.shape[1] % 4)))
    packed = (padded[:, 0::4] << 6 | padded[:, 1::4] << 4 | padded[:, 2::4] << 2 | padded[:, 3::4]).astype(np.uint8)
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", gray.width, gray.height, 2, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed)))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", struct.pack(">H", key)) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("decoder", [*DECODERS, "open_clip"])
@pytest.mark.parametrize("background", [None, "white", "black", "ff8000"])
def test_transparency_of_every_sort_is_followed_and_a_background_shows_through(
    decoder: str, background: str | None
) -> None:
    kinds = _see_through()
    if decoder == "open_clip" and background is None:  # which leaves keys and palettes alone
        kinds = {name: kinds[name] for name in ("RGBA", "LA", "webp", "tiff", "jpeg2000")}
    pixels_BHWC, outcomes = decoded([data for data, _ in kinds.values()], decoder, background=background)
    for (name, (_, picture)), pixels, outcome in zip(kinds.items(), pixels_BHWC, outcomes, strict=True):
        assert isinstance(outcome, Decoded), (name, outcome)
        if background is not None:
            colour = {"white": "#ffffff", "black": "#000000"}.get(background, f"#{background}")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")
        assert np.abs(pixels.astype(int) - open_clips(picture)).mean() <= 0.5, name


def test_an_array_with_an_alpha_channel_is_a_transparent_picture() -> None:
    picture = veiled(base())
    (pixels,), _ = decoded([Image.fromarray(np.asarray(picture))], "torchvision", background="white")
    under = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    assert np.abs(pixels.astype(int) - open_clips(under)).max() <= 2


@pytest.mark.parametrize("wrong", ["grey", "#ffffff", "fff", "12345g", ""])
def test_an_invalid_colour_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match=f"background '{wrong}' is not a colour: use white, black or RRGGBB"):
        DecodeSettings(background=wrong)


def _expected_gray(values: NDArray[Any], low: float, high: float) -> Image.Image:
    scaled = np.clip((np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low), 0, 1)
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).convert("RGB")


def _grays() -> dict[str, tuple[bytes, Image.Image]]:
    """Deep gray of every kind, and what it shows."""
    share = deep(ImageOps.autocontrast(base().convert("L")), 4095) / 4095
    odd = share.astype(np.float32)
    odd[:20, :30], odd[:20, 30:60], odd[:20, 60:90] = np.nan, np.inf, -np.inf
    shown = np.where(np.isposinf(odd), 1, np.where(np.isneginf(odd), 0, odd))
    twelve = np.rint(share * 4095).astype(np.uint16)
    pairs = twelve.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    packed = packed.astype(np.uint8).reshape(share.shape[0], -1, 1)
    # as many bytes as the pixels take, of which the header has to state the pixels
    twelve_bits = raw_tiff(packed, 12).replace(
        struct.pack("<HHLL", 256, 4, 1, packed.shape[1]), struct.pack("<HHLL", 256, 4, 1, share.shape[1])
    )

    def tiff(values: NDArray[Any], bits: int, form: int, photometric: int = 1) -> bytes:
        return raw_tiff(values[..., None], bits, form=form, photometric=photometric)

    ranges = {"0..1": (share, 0, 1), "0..255": (share * 200, 0, 255), "0..65535": (share * 4000, 0, 65535)}
    ranges |= {"wide": (share * 1e6 + 7e5, 7e5, 1.7e6), "negative": (share * 300 - 100, -100, 200)}
    made: dict[str, tuple[bytes, Image.Image]] = {}
    for name, (values, low, high) in ranges.items():
        made[f"float {name}"] = tiff(values.astype(np.float32), 32, 3), _expected_gray(values, low, high)
        if name != "0..1":
            whole = np.rint(values)
            made[f"int32 {name}"] = tiff(whole.astype(np.int32), 32, 2), _expected_gray(whole, low, high)
    above = np.rint(share * 2e9 + 2e9)
    return made | {
        "not a number": (tiff(odd, 32, 3), _expected_gray(shown, 0, 1)),
        "all of it": (tiff(np.full_like(odd, np.nan), 32, 3), Image.new("RGB", (150, 100))),
        "a hair beyond": (tiff((share * 1.0005).astype(np.float32), 32, 3), _expected_gray(share * 1.0005, 0, 1)),
        "uint32": (tiff(above.astype(np.uint32), 32, 1), _expected_gray(above, 2e9, 4e9)),
        "int16": (tiff(np.rint(share * 3e4).astype(np.int16), 16, 2), _expected_gray(share * 3e4, 0, 65535)),
        "uint16": (tiff(np.rint(share * 65535).astype(np.uint16), 16, 1), _expected_gray(share, 0, 1)),
        "white is zero": (tiff(np.rint(share * 65535).astype(np.uint16), 16, 1, 0), _expected_gray(1 - share, 0, 1)),
        "12 bits": (twelve_bits, _expected_gray(share, 0, 1)),
    }


@pytest.mark.parametrize("decoder", DECODERS)
def test_deep_gray_is_scaled_by_the_formats_maximum_or_its_own_range(decoder: str) -> None:
    kinds = _grays()
    pixels_BHWC, outcomes = decoded([data for data, _ in kinds.values()], decoder)
    for (name, (_, picture)), pixels, outcome in zip(kinds.items(), pixels_BHWC, outcomes, strict=True):
        assert isinstance(outcome, Decoded), (name, outcome)
        assert np.abs(pixels.astype(int) - open_clips(picture)).mean() <= 0.6, name


def test_stored_leaves_pictures_as_open_clip_opens_them() -> None:
    """Which has Pillow turn TIFFs, and nothing else."""
    picture = base()
    for kind, turned in (("JPEG", False), ("PNG", False), ("TIFF", True)):
        exif = Image.Exif()
        exif[0x112] = 6
        data = saved(picture, kind, exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            shown = image.convert("RGB")
        assert shown.size == ((100, 150) if turned else (150, 100))
        for decoder in DECODERS:
            (pixels,), (outcome,) = decoded([data], decoder, orientation="stored")
            assert isinstance(outcome, Decoded)
            assert (outcome.width, outcome.height) == shown.size
            assert np.abs(pixels.astype(int) - open_clips(shown)).mean() <= 0.5, (kind, decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_old_runs_are_finished_with_their_own_pixel_rules(decoder: str) -> None:
    """Alpha dropped, 16-bit gray shifted and other deep gray cut off, TIFFs turned twice, XMP read by Pillow alone."""
    picture, clear = base(), veiled(base())
    deep_gray = deep(picture, 65535)
    shifted = Image.fromarray((deep_gray.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 3
    kinds = {
        "alpha": (saved(clear, "PNG"), clear.convert("RGB")),
        "16 bits": (saved(Image.fromarray(deep_gray.astype(np.uint16)), "PNG"), shifted),
        "int32": (saved(Image.fromarray(deep_gray.astype(np.int32)), "TIFF"), Image.new("RGB", (150, 100), "white")),
        "tiff": (
            saved(ImageOps.flip(ImageOps.mirror(picture)), "TIFF", exif=exif),
            ImageOps.flip(ImageOps.mirror(picture)),
        ),
    }
    pixels_BHWC, _ = decoded([data for data, _ in kinds.values()], decoder, pixels=None)
    for (name, (_, shown)), pixels in zip(kinds.items(), pixels_BHWC, strict=True):
        assert np.abs(pixels.astype(int) - open_clips(shown)).mean() <= 1.5, name
