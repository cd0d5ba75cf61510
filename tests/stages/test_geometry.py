"""Resize and crop, compared with the arithmetic of torchvision and open_clip and with Pillow's EXIF turns."""

import random

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import ResizeKeepRatio, center_crop_or_pad
from PIL import Image, ImageOps
from torchvision.transforms.functional import _compute_resized_output_size, center_crop

from clipbatch.stages.decode.geometry import Axis, Geometry, ResizeMode, Target, geometry_of
from clipbatch.stages.decode.pixels import blank, place

ORIENTATION = 0x0112


def _target(height: int, width: int | None = None, mode: ResizeMode = "shortest", fill: int = 0) -> Target:
    return Target(height=height, width=width or height, resize_mode=mode, interpolation="bicubic", fill=fill)


def _sizes(count: int, longest: int, seed: int) -> list[tuple[int, int]]:
    """Random heights and widths, small and large ones alike, and every odd shape near them."""
    rng = random.Random(seed)

    def length() -> int:
        return round(2 ** rng.uniform(0, np.log2(longest)))

    return [(length(), length()) for _ in range(count)]


def _numbers(axis: Axis) -> tuple[int, int, int]:
    return axis.resized, axis.crop, axis.kept


def _crop(length: int, target: int) -> int:
    """First pixel that torchvision's CenterCrop keeps of `length` pixels, found by cropping a ruler with it."""
    ruler = torch.arange(length).expand(1, 1, length)
    return int(center_crop(ruler, [1, target])[0, 0, 0])


@pytest.mark.parametrize("size", [64, 224, 225, 336])
def test_shortest_has_the_sizes_of_torchvisions_resize_and_center_crop(size: int) -> None:
    for height, width in [*_sizes(800, 20_000, size), (size, size), (size, 7 * size), (size - 1, size + 1), (1, 1)]:
        made = geometry_of(height, width, 1, _target(size))
        resized = _compute_resized_output_size((height, width), [size])
        assert _numbers(made.y) == (resized[0], _crop(resized[0], size), size), (height, width)
        assert _numbers(made.x) == (resized[1], _crop(resized[1], size), size), (height, width)
        assert (made.y.source, made.x.source, made.top, made.left) == (height, width, 0, 0)


@pytest.mark.parametrize("target", [(224, 224), (64, 48), (225, 100)])
def test_longest_has_the_sizes_of_open_clips_resize_keep_ratio(target: tuple[int, int]) -> None:
    for height, width in _sizes(1000, 3000, 1):
        if max(height / width, width / height) > 100:
            continue  # open_clip would resize to nothing, and fail
        made = geometry_of(height, width, 1, _target(*target, mode="longest"))
        # a size is all that open_clip asks an image for here; this one has no pixels
        resized = ResizeKeepRatio.get_params(Image.new("1", (width, height)), target, 1.0)
        assert [made.y.resized, made.x.resized] == [max(1, n) for n in resized], (height, width)


def test_squash_resizes_the_whole_image_to_the_target() -> None:
    for height, width in _sizes(200, 5000, 2):
        made = geometry_of(height, width, 1, _target(224, 160, "squash"))
        assert (_numbers(made.y), _numbers(made.x)) == ((224, 0, 224), (160, 0, 160))
        assert (*made.y.region, *made.x.region) == pytest.approx((0, height, 0, width), rel=1e-12)


def _coded(height: int, width: int) -> NDArray[np.uint8]:
    """Pixels that say where they are: red the row, green the column; blue tells them from fill."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[..., 0], image[..., 1] = np.arange(height)[:, None], np.arange(width)[None, :]
    return image


def _upright(stored: NDArray[np.uint8], orientation: int) -> Image.Image:
    """The image as Pillow turns it."""
    image = Image.fromarray(stored)
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _placed(stored: NDArray[np.uint8], made: Geometry, target: Target) -> NDArray[np.uint8]:
    """The kept pixels, for a plan that does not change their size, turned and padded as the decoders do it."""
    (top, bottom), (left, right) = made.y.region, made.x.region
    assert (bottom - top, right - left) == (made.y.kept, made.x.kept)
    assert all(edge == int(edge) for edge in (top, bottom, left, right))
    kept = torch.from_numpy(stored[int(top) : int(bottom), int(left) : int(right)].copy()).permute(2, 0, 1)
    pixels_BCHW = blank(1, target.height, target.width, target.fill, "cpu")
    place(pixels_BCHW, 0, kept, made)
    return np.asarray(pixels_BCHW[0].permute(1, 2, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(8, 8), (8, 13), (8, 14), (13, 8), (14, 8), (9, 9), (9, 20), (20, 9)])
def test_the_crop_of_a_turned_image_is_the_crop_of_pillows_upright_one(size: tuple[int, int], orientation: int) -> None:
    stored, target = _coded(*size), _target(min(size))  # the short side has its size already: nothing is resized
    expected = center_crop(_upright(stored, orientation), [min(size)])
    made = geometry_of(*size, orientation, target)
    assert np.array_equal(_placed(stored, made, target), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(9, 9), (9, 4), (9, 5), (4, 9), (2, 9), (9, 1)])
def test_the_padding_of_a_turned_image_is_open_clips_of_the_upright_one(
    size: tuple[int, int], orientation: int
) -> None:
    stored, target = _coded(*size), _target(9, mode="longest", fill=77)
    expected = center_crop_or_pad(_upright(stored, orientation), [9, 9], fill=(77, 77, 77))
    made = geometry_of(*size, orientation, target)
    assert np.array_equal(_placed(stored, made, target), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_changes_neither_what_is_kept_nor_how_much(orientation: int) -> None:
    for height, width in _sizes(200, 5000, orientation):
        made, plain = geometry_of(height, width, orientation, _target(224)), geometry_of(height, width, 1, _target(224))
        assert (made.y.source, made.x.source) == (height, width)
        assert (made.y.resized, made.x.resized) == (plain.y.resized, plain.x.resized)
        for axis in (made.y, made.x):
            low, high = axis.region
            assert 0 <= low < high <= axis.source + 1e-9
            assert abs((low + high) - axis.source) * axis.resized <= 1.001 * axis.source  # centred to half a pixel


@pytest.mark.parametrize(("mode", "target"), [("shortest", (64, 64)), ("longest", (64, 64)), ("squash", (64, 48))])
@pytest.mark.parametrize("size", [(97, 150), (150, 97), (300, 64), (65, 64), (31, 40)])
def test_a_smooth_image_comes_out_as_from_open_clips_transform(
    mode: ResizeMode, target: tuple[int, int], size: tuple[int, int]
) -> None:
    ramp = np.stack([np.linspace(20, 230, size[0])[:, None].repeat(size[1], 1)] * 3, -1).round().astype(np.uint8)
    ramp[..., 1] = np.linspace(230, 20, size[1]).round()[None, :]
    transform = open_clip.image_transform(target, is_train=False, resize_mode=mode, fill_color=9)
    transform.transforms = transform.transforms[:-2]  # without ToTensor and Normalize
    theirs = np.asarray(transform(Image.fromarray(ramp))).astype(int)
    made = geometry_of(*size, 1, _target(*target, mode=mode, fill=9))
    (top, bottom), (left, right) = made.y.region, made.x.region
    kept = Image.fromarray(ramp).resize(
        (made.x.kept, made.y.kept), Image.Resampling.BICUBIC, (left, top, right, bottom)
    )
    pixels_BCHW = blank(1, *target, 9, "cpu")
    place(pixels_BCHW, 0, torch.from_numpy(np.array(kept)).permute(2, 0, 1), made)
    ours = pixels_BCHW[0].permute(1, 2, 0).numpy().astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2  # one resize against one resize: rounding, and the crop's edge
