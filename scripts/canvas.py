"""A canvas to draw the sample pictures on: shapes with soft edges on mottled backgrounds, from one random generator.

Lengths are hundredths of the picture's short side, x right and y down, (0, 0) at the centre.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Array = NDArray[np.float64]
OVERSAMPLING = 3


def parse(outline: str) -> Array:
    """'x,y x,y ...' -> (points, 2)."""
    return np.array([[float(number) for number in point.split(",")] for point in outline.split()])


class Canvas:
    """A picture under way, OVERSAMPLING times too large, and its subject's scale, shift, tilt and mirror."""

    def __init__(self, width_px: int, height_px: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size_px = width_px, height_px
        self.image = Image.new("RGB", (width_px * OVERSAMPLING, height_px * OVERSAMPLING))
        self.short = min(self.image.size)
        self.scale, self.shift, self.tilt, self.mirror = 1.0, np.zeros(2), 0.0, 1

    def place(self, scale: tuple[float, float], *, tilt: float = 0.05, down: float = 0) -> None:
        """Choose how the subject will lie: its scale in a range, tilted by at most `tilt` radians, moved down."""
        self.scale = self.rng.uniform(*scale)
        self.tilt = self.rng.uniform(-tilt, tilt)
        self.mirror = int(self.rng.choice([-1, 1]))
        self.shift = self.rng.uniform((-4, down - 4), (4, down + 4))

    def fill(self, points: Array, colour: Colour, shade: float) -> None:
        """Fill a polygon (points, 2), lighter at its top and darker at its foot by `shade`."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        turned = points * (self.mirror, 1) * self.scale @ np.array([[cos, sin], [-sin, cos]]) + self.shift
        at = np.array(self.image.size) / 2 + turned / 100 * self.short
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in at.tolist()], fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(0.002 * self.short))
        top, foot = at[:, 1].min(), at[:, 1].max()
        part = np.clip((np.arange(self.image.height) - top) / max(foot - top, 1), 0, 1)
        column = np.array(colour) * (1 + shade - 2 * shade * part[:, None])
        self.image.paste(to_image(column[:, None]).resize(self.image.size), mask=mask)

    def polygon(self, outline: str, colour: Colour, *, shade: float = 0.25) -> None:
        self.fill(parse(outline), colour, shade)

    def blob(self, outline: str, colour: Colour, *, shade: float = 0.25) -> None:
        """Fill a smooth closed curve (Catmull-Rom) through the points of the outline."""
        p = parse(outline)
        before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
        t = np.linspace(0, 1, 12, endpoint=False)[:, None, None]
        curve = p + t * (after - before) / 2 + t**2 * (before - 2.5 * p + 2 * after - beyond / 2)
        curve = curve + t**3 * (1.5 * (p - after) + (beyond - before) / 2)
        self.fill(curve.transpose(1, 0, 2).reshape(-1, 2), colour, shade)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, *, shade: float = 0.25) -> None:
        angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        self.fill(np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1), colour, shade)

    def limb(self, joints: str, colour: Colour) -> None:
        """Fill a tapering stroke through the joints 'x,y,width x,y,width ...'."""
        points, widths = np.split(parse(joints), [2], axis=1)
        along = np.gradient(points, axis=0)
        across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
        side = across * widths / 2
        self.fill(np.concatenate([points + side, (points - side)[::-1]]), colour, 0.15)

    def backdrop(self, *bands: tuple[float, Colour, Colour], rough: float = 0.1) -> None:
        """Cover all with horizontal bands (height of its top, colour there, colour at its foot), mottled by `rough`."""
        height = self.image.height
        heights = (np.arange(height) - height / 2) / self.short * 100
        feet = [*(top for top, _, _ in bands[1:]), heights[-1]]
        column = np.zeros((height, 3))
        for (top, upper, lower), foot in zip(bands, feet, strict=True):
            start = max(top, heights[0])
            part = np.clip((heights - start) / (foot - start), 0, 1)[:, None]
            shades = np.array(upper) * (1 - part) + np.array(lower) * part
            column = np.where((heights >= start)[:, None], shades, column)
        mottle = 0.5 * self.clouds(4) + 0.3 * self.clouds(12) + 0.35 * self.clouds(40)
        image = to_image(column[:, None] * (1 + rough * mottle[:, :, None]))
        self.image = image.filter(ImageFilter.GaussianBlur(0.006 * self.short))

    def clouds(self, cells: int) -> Array:
        """Smooth noise about 0 (height, width), `cells` lumps across."""
        lumps = Image.fromarray(self.rng.normal(0, 1, (cells, cells)).astype(np.float32))
        return np.asarray(lumps.resize(self.image.size, Image.Resampling.BICUBIC), np.float64)

    def finish(self) -> Image.Image:
        """Uneven light, a little blur, down to the final size, a little grain."""
        image = to_image(np.asarray(self.image) * (1 + 0.06 * self.clouds(3)[:, :, None]))
        image = image.filter(ImageFilter.GaussianBlur(0.004 * self.short))
        small = np.asarray(image.resize(self.size_px, Image.Resampling.LANCZOS))
        grain = self.rng.normal(0, 5, (*small.shape[:2], 1)) + self.rng.normal(0, 1.7, small.shape)
        return to_image(small + grain)


def to_image(pixels: Array) -> Image.Image:
    """(height, width, 3), clipped to 0..255."""
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def vary(rng: np.random.Generator, colour: Colour, by: float = 0.15) -> Colour:
    """A colour a little lighter or darker, and a little off in hue."""
    r, g, b = (np.array(colour) * (1 + rng.uniform(-by, by) + rng.uniform(-by / 4, by / 4, 3))).clip(0, 255).astype(int)
    return int(r), int(g), int(b)


def darker(rng: np.random.Generator, colour: Colour, part: float = 0.65) -> Colour:
    r, g, b = colour
    return vary(rng, (int(r * part), int(g * part), int(b * part)), 0.05)


def pick(rng: np.random.Generator, *colours: Colour) -> Colour:
    return vary(rng, colours[int(rng.integers(len(colours)))])


def sky(c: Canvas) -> None:
    top = pick(c.rng, (90, 140, 205), (120, 165, 215), (150, 180, 210))
    c.backdrop((-999, top, vary(c.rng, (195, 215, 235), 0.05)), rough=0.05)


def meadow(c: Canvas, horizon: float = -15) -> None:
    far = pick(c.rng, (60, 85, 50), (80, 105, 65), (150, 180, 205))
    near = horizon, vary(c.rng, (120, 150, 75)), vary(c.rng, (85, 115, 50))
    c.backdrop((-999, far, vary(c.rng, far)), near, rough=0.14)


def street(c: Canvas) -> None:
    wall = pick(c.rng, (150, 150, 150), (110, 125, 100), (175, 165, 150), (190, 205, 220))
    road = 5, vary(c.rng, (150, 150, 150)), vary(c.rng, (105, 105, 108))
    c.backdrop((-999, vary(c.rng, wall), wall), road, rough=0.07)


def backcloth(c: Canvas, *colours: Colour, rough: float = 0.15) -> None:
    colour = pick(c.rng, *colours)
    c.backdrop((-999, colour, vary(c.rng, colour)), rough=rough)
