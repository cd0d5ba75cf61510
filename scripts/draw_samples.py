"""Draw the sample pictures that ship with the demo model.

    python scripts/draw_samples.py OUT_DIR

fills OUT_DIR with 34 pictures, `<kind>-<number>`, in the shapes and formats that a real folder has (see VARIANTS), and
with two files that look like pictures and cannot be read. Nothing in them is photographed: each is shapes on a mottled
background, its colours and place drawn at random, seeded by its number, so that the same versions of Pillow and numpy
write the same files again. The shapes and colours were tuned on the demo model until it knew most of them: how many it
gets right tells whether a set-up works, and nothing about the model.

Lengths are hundredths of the picture's short side, x right and y down, (0, 0) at the centre.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from canvas import Canvas, Colour, backcloth, darker, meadow, pick, sky, street, vary

ERROR_PAGE = """<!DOCTYPE html>
<html><head><title>404 Not Found</title></head>
<body><h1>Not Found</h1><p>The picture that you asked for is not on this server.</p></body></html>
"""


def airplane(c: Canvas) -> None:
    sky(c)
    c.place((0.85, 1.1), tilt=0.2)
    hull = pick(c.rng, (225, 228, 232), (205, 210, 220), (170, 175, 185))
    dark = vary(c.rng, (120, 125, 140))
    tail = pick(c.rng, (200, 60, 50), (50, 80, 160), hull)
    c.polygon("5,0 -12,-17 -18,-17 -10,0", dark)
    c.polygon("-30,-3 -42,-19 -47,-19 -43,-2", tail)
    c.blob("45,2 40,-3 28,-5 -25,-4.5 -45,-3 -28,3 30,6", hull)
    c.polygon("-34,0 -47,7 -51,7 -43,-1", dark)
    c.polygon("10,3 -16,22 -23,22 -8,3", vary(c.rng, hull, 0.2))
    c.ellipse(2, 10, 6, 2.4, dark)
    c.limb("34,-1.8,1.2 -30,-1.8,1.2", (90, 100, 125))
    c.polygon("39,-2 36,-3.5 34,-1.2", (60, 70, 90))


def ship(c: Canvas) -> None:
    water = pick(c.rng, (60, 95, 130), (75, 110, 125), (50, 80, 110))
    top = pick(c.rng, (150, 180, 215), (185, 200, 215), (120, 160, 210))
    c.backdrop((-999, top, vary(c.rng, (210, 220, 230), 0.05)), (10, vary(c.rng, water), water), rough=0.08)
    c.place((0.9, 1.1), tilt=0.02)
    hull = pick(c.rng, (50, 60, 85), (150, 45, 40), (235, 235, 235), (70, 75, 80))
    white = vary(c.rng, (232, 232, 228), 0.06)
    c.polygon("-44,5 47,1 38,17 -40,17", hull)
    c.polygon("-41,14.5 39,14.5 38,17.5 -40,17.5", vary(c.rng, (120, 45, 40)))
    c.polygon("-36,5 -36,-6 14,-6 20,3.5", white)
    c.polygon("-30,-6 -30,-13 4,-13 6,-6", white)
    for windows in ("-32,-2,1.8 6,-2,1.8", "-32,-9.5,1.8 6,-9.5,1.8"):
        c.limb(windows, (85, 95, 110))
    c.polygon("-20,-13 -19,-25 -10,-25 -9,-13", pick(c.rng, (190, 60, 45), (50, 60, 90)))
    c.limb("2,-12,1.4 2,-33,0.8", (90, 90, 95))
    c.limb("30,2,1.2 30,-14,0.8", (90, 90, 95))
    c.limb("-50,18.5,2 50,18.5,1.2", vary(c.rng, (190, 205, 215)))


def wheel(c: Canvas, x: float, y: float, r: float) -> None:
    c.ellipse(x, y, r, r, (28, 28, 30))
    c.ellipse(x, y, r * 0.55, r * 0.55, (165, 168, 172))
    c.ellipse(x, y, r * 0.2, r * 0.2, (90, 90, 95))


def car(c: Canvas) -> None:
    street(c)
    c.place((0.95, 1.1), tilt=0.02, down=4)
    paint = pick(c.rng, (190, 35, 35), (35, 70, 160), (200, 200, 205), (225, 180, 40), (40, 42, 46), (30, 110, 80))
    glass = vary(c.rng, (70, 85, 100))
    c.ellipse(0, 18, 46, 4, (50, 50, 52), shade=0)
    c.blob("-26,-2 -19,-16 -4,-19 12,-17 25,-2 0,2", paint, shade=0.35)
    c.polygon("-21,-3 -16,-13.5 -3,-15.5 -3,-3", glass)
    c.polygon("-0.5,-3 -0.5,-15.5 10,-14 20,-3", glass)
    c.blob("-45,2 -42,-3 -25,-4 22,-4 40,0 46,6 45,14 0,16 -44,14", paint, shade=0.35)
    c.limb("-42,4.5,1.2 43,5,1.2", vary(c.rng, paint, 0.3))
    c.ellipse(43, 5, 2.5, 2, (245, 240, 210))
    c.ellipse(-44, 4, 1.6, 2.2, (170, 30, 30))
    for x in (-26, 27):
        wheel(c, x, 14, 8.5)


def truck(c: Canvas) -> None:
    street(c)
    c.place((0.95, 1.1), tilt=0.02, down=2)
    paint = pick(c.rng, (190, 40, 35), (40, 80, 160), (235, 235, 235), (225, 150, 40), (40, 110, 80))
    box = pick(c.rng, (228, 228, 225), (205, 205, 200), (180, 185, 190), paint)
    c.ellipse(0, 26, 46, 3.5, (48, 48, 50), shade=0)
    c.polygon("-44,20 -44,13 44,13 44,20", (45, 45, 48))
    c.polygon("-46,15 -46,-26 14,-26 14,15", box, shade=0.12)
    c.limb("-44,-5,3 13,-5,3", vary(c.rng, paint))
    c.polygon("17,18 17,-17 33,-17 39,-1 46,3 46,18", paint, shade=0.3)
    c.polygon("24,-2 24,-13 31.5,-13 36,-2", (65, 80, 95))
    c.ellipse(44.5, 9, 1.8, 2.2, (245, 240, 205))
    for x in (-35, -20, 31):
        wheel(c, x, 20, 7.5)


def bird(c: Canvas) -> None:
    backcloth(c, (120, 150, 90), (150, 165, 120), (170, 190, 205), (110, 130, 80), rough=0.12)
    c.place((0.9, 1.15), tilt=0.15)
    coat = pick(c.rng, (125, 95, 65), (95, 90, 85), (80, 110, 150), (165, 110, 60))
    belly = pick(c.rng, (215, 195, 165), (225, 215, 205), (205, 130, 70))
    c.limb("-60,30,5 0,27,4.5 60,31,3.5", vary(c.rng, (95, 75, 55)))
    c.limb("2,15,1.8 3,27,1.4", (70, 55, 45))
    c.limb("-4,15,1.8 -4,27,1.4", (70, 55, 45))
    c.limb("-12,8,10 -42,24,6", vary(c.rng, coat, 0.25))
    c.blob("20,-16 21,0 12,14 -4,18 -20,12 -14,-2 2,-14", coat)
    c.blob("20,-6 19,4 10,14 -3,17 6,4 13,-6", belly)
    c.ellipse(17, -18, 10.5, 9.5, vary(c.rng, coat))
    c.blob("6,-5 6,5 -8,13 -27,15 -12,1", vary(c.rng, coat, 0.3))
    c.polygon("26,-20.5 37,-16.5 26,-15", pick(c.rng, (70, 60, 50), (225, 160, 50)))
    c.ellipse(20.5, -20, 1.7, 1.7, (15, 15, 15))


def legs(c: Canvas, xs: Sequence[float], top: float, foot: float, width: float, colour: Colour) -> None:
    for i, x in enumerate(xs):
        knee = x + c.rng.uniform(-3, 3)
        outline = f"{x},{top},{width * 1.7} {knee},{(top + foot) / 2},{width} {knee + 1},{foot},{width * 0.9}"
        c.limb(outline, darker(c.rng, colour, 1.0 if i % 2 else 0.7))


def horse(c: Canvas) -> None:
    meadow(c)
    c.place((0.95, 1.1), down=2)
    coat = pick(c.rng, (120, 70, 40), (95, 55, 35), (145, 90, 55), (70, 50, 42))
    mane = vary(c.rng, (45, 32, 26))
    c.limb("-29,-8,5 -37,2,6 -37,20,2", mane)
    legs(c, (-22, -26, 13, 17), 6, 38, 4.2, coat)
    c.blob("-30,-6 -20,-14 0,-10 16,-13 23,0 12,10 -8,11 -26,9", coat)
    c.blob("8,-10 20,-26 29,-33 33,-24 26,-10 21,3", coat)
    c.blob("26,-33 33,-33 46,-17 43,-12 37,-15 29,-21", vary(c.rng, coat, 0.08))
    c.limb("28,-34,3 20,-26,6 10,-12,3", mane)
    c.polygon("27,-33 28,-40 32,-33", coat)
    c.ellipse(33.5, -26.5, 1.2, 1.2, (15, 12, 10))


def deer(c: Canvas) -> None:
    meadow(c, horizon=c.rng.uniform(-40, 20))
    c.place((0.95, 1.1), down=5)
    coat = pick(c.rng, (150, 105, 65), (165, 120, 80), (130, 95, 65))
    legs(c, (-18, -22, 12, 15), 5, 38, 2.8, coat)
    c.blob("-26,-6 -16,-11 4,-9 17,-11 20,0 10,8 -10,8 -24,6", coat)
    c.ellipse(-26.5, -2, 3, 5, (235, 228, 215))
    c.blob("9,-8 17,-24 23,-29 26,-22 22,-8 18,2", coat)
    c.blob("19,-30 25,-32 37,-23 34,-20 24,-22", vary(c.rng, coat, 0.08))
    c.ellipse(16, -31, 5.5, 2, coat)
    horn = vary(c.rng, (95, 75, 55))
    for antler in (
        *("22,-31,2 10,-42,1.8 14,-53,0.8", "10,-42,1.4 3,-50,0.8", "11,-46,1.4 20,-49,0.8"),
        *("22,-31,2 26,-42,1.8 30,-53,0.8", "26,-42,1.4 19,-50,0.8", "27,-46,1.4 36,-49,0.8"),
    ):
        c.limb(antler, horn)
    c.ellipse(27, -26.5, 1.1, 1.1, (15, 12, 10))
    c.ellipse(36, -22, 1.4, 1.2, (30, 25, 22))


def frog(c: Canvas) -> None:
    backcloth(c, (60, 45, 35), (90, 80, 60), (150, 120, 95), (180, 170, 150), rough=0.25)
    c.place((0.8, 1.0), tilt=0.15, down=2)
    skin = pick(c.rng, (110, 130, 50), (95, 115, 55), (130, 120, 70))
    dark = vary(c.rng, (70, 75, 40))
    pale = vary(c.rng, (195, 190, 130))
    c.blob("-36,10 -22,-6 -8,4 -14,20 -36,22", vary(c.rng, skin))
    c.blob("-34,12 -24,-16 -2,-25 18,-22 33,-8 28,8 6,18 -20,20", skin)
    c.blob("33,-6 30,7 8,17 -6,17 12,5", pale)
    c.limb("14,6,9 20,20,5.5 32,26,3", skin)
    c.limb("-22,10,13 -4,22,9 -24,26,5 4,28,2", vary(c.rng, skin))
    for x, y, r in c.rng.uniform((-25, -15, 1.5), (10, 8, 3.5), (9, 3)):
        c.ellipse(x, y, r, r * 0.8, dark)
    c.ellipse(18, -20, 7.5, 7, vary(c.rng, skin))
    c.ellipse(19, -20, 5, 4.8, pick(c.rng, (190, 150, 50), (170, 140, 60)))
    c.ellipse(19.5, -20, 3.2, 2.4, (15, 15, 12))
    c.limb("33,-5,1 16,0,1.2 5,-2,0.6", dark)


def cat(c: Canvas) -> None:
    backcloth(c, (130, 60, 50), (120, 60, 55), (110, 45, 40))
    c.place((0.95, 1.15), tilt=0.1, down=4)
    coat = pick(c.rng, (125, 115, 105), (150, 135, 115), (190, 135, 75))
    dark = darker(c.rng, coat)
    white = vary(c.rng, (225, 220, 212), 0.05)
    c.blob("-28,60 -25,18 0,8 25,18 30,60", coat)
    c.blob("-10,60 -11,22 0,16 11,22 10,60", white)
    for c.mirror in (-1, 1):
        c.polygon("27,-10 25,-40 6,-24", coat)
        c.polygon("23.5,-16 22.5,-34 11,-24", vary(c.rng, (150, 105, 95)))
    c.blob("-29,-4 -22,-21 0,-26 22,-21 29,-4 20,19 0,26 -20,19", coat)
    for stripe in ("-9,-25,2.8 -6,-13,1", "0,-25,2.8 0,-13,1", "9,-25,2.8 6,-13,1"):
        c.limb(stripe, dark)
    c.blob("-13,9 0,0 13,9 7,17 -7,17", white)
    eye = pick(c.rng, (175, 185, 70), (120, 170, 90), (215, 165, 50))
    for c.mirror in (-1, 1):
        c.limb("29,-2,2.2 17,2,0.8", dark)
        c.ellipse(12.5, -5.5, 6.6, 5.4, (25, 22, 20))
        c.ellipse(12.5, -5.5, 5.4, 4.4, eye)
        c.ellipse(12.5, -5.5, 2.4, 4.2, (10, 10, 10))
        for whisker in ("7,9,0.6 34,3,0.3", "7,9,0.6 34,9,0.3", "7,9,0.6 34,15,0.3"):
            c.limb(whisker, (240, 240, 235))
    c.polygon("-3.5,4 3.5,4 0,7.5", (190, 110, 105))
    c.limb("0,7,1 0,11,1", dark)


def dog(c: Canvas) -> None:
    backcloth(c, (150, 110, 85), (60, 50, 45), (110, 120, 70), (200, 190, 175), (130, 60, 50))
    c.place((0.95, 1.15), tilt=0.1, down=5)
    coat = pick(c.rng, (195, 155, 105), (150, 100, 60), (225, 215, 200), (110, 75, 50), (60, 52, 48))
    ear = darker(c.rng, coat)
    pale = vary(c.rng, (228, 215, 195), 0.05)
    c.blob("-27,60 -24,20 0,12 24,20 28,60", coat)
    c.blob("-13,60 -12,25 0,20 12,25 13,60", pale)
    c.blob("-23,-8 -16,-27 0,-31 16,-27 23,-8 15,12 0,22 -15,12", coat)
    for c.mirror in (-1, 1):
        c.blob("13,-28 26,-24 33,2 26,14 20,-5", ear)
    c.blob("-5,-28 5,-28 6,-5 -6,-5", pale)
    c.blob("-13,6 -7,-4 7,-4 13,6 10,18 0,22 -10,18", pale)
    for c.mirror in (-1, 1):
        c.ellipse(10.5, -8.5, 3.6, 3.4, (35, 22, 15))
        c.ellipse(11.5, -9.5, 0.9, 0.9, (240, 240, 240))
    c.blob("-6,2 0,0 6,2 3,7 -3,7", (22, 18, 18))
    c.limb("0,7,1.2 0,12,1.2", (45, 30, 28))
    c.limb("-7,12,1 0,13.5,1.4 7,12,1", (45, 30, 28))
    if c.rng.random() < 0.5:
        c.blob("-3.5,14 3.5,14 3,22 -3,22", (205, 95, 100))


COUNTS: dict[Callable[[Canvas], None], int] = {
    **dict.fromkeys((airplane, ship, car, truck), 4),
    **dict.fromkeys((bird, horse, deer, frog, cat, dog), 3),
}
SIZES_PX = ((160, 120), (240, 180), (128, 128), (320, 240), (180, 240), (200, 200), (300, 200))

LYING = Image.Exif()
LYING[ExifTags.Base.Orientation] = 6  # to be shown turned a quarter to the right

VARIANTS: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    "airplane-4": (".jpg", lambda im: im.convert("L"), {}),
    "car-4": (".jpg", lambda im: im, {"progressive": True}),
    "horse-3": (".jpg", lambda im: im.transpose(Image.Transpose.ROTATE_90), {"exif": LYING}),
    "ship-4": (".png", lambda im: im, {}),
    "deer-3": (".png", lambda im: im.quantize(64), {}),
    "truck-4": (".webp", lambda im: im, {"quality": 80}),
    "frog-3": (".gif", lambda im: im.quantize(64), {}),
}
"""The pictures that are no plain JPEG: suffix, what is done to the picture, options of Pillow's `save`."""


def draw(subject: Callable[[Canvas], None], number: int, size_px: tuple[int, int]) -> Image.Image:
    """One picture of a subject; the same number and size give the same picture."""
    canvas = Canvas(*size_px, np.random.default_rng(number))
    subject(canvas)
    return canvas.finish()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the demo model's sample pictures.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    sizes_px = itertools.cycle(SIZES_PX)
    for subject, count in COUNTS.items():
        for number in range(1, count + 1):
            name = f"{subject.__name__}-{number}"
            suffix, change, options = VARIANTS.get(name, (".jpg", lambda im: im, {}))
            change(draw(subject, number, next(sizes_px))).save(out / f"{name}{suffix}", **{"quality": 85, **options})
    whole = io.BytesIO()
    draw(dog, 4, SIZES_PX[0]).save(whole, "JPEG")
    (out / "cut-off.jpg").write_bytes(whole.getvalue()[: whole.tell() * 6 // 10])
    (out / "broken-download.jpg").write_text(ERROR_PAGE)


if __name__ == "__main__":
    main()
