"""Decode with Pillow and open_clip's own transform, as open_clip itself would: the path that others are held against.

Palettes are resized before they become RGB, and 16-bit gray is cut off at 255. The same limits and statuses as of
`pil`. Slow, since the whole image is resized before it is cropped.
"""

from __future__ import annotations

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.decode.pil import opened
from clipbatch.stages.pillow import TURNS, rgb
from clipbatch.types import Decoded, Encoded, Picture, Reject


class OpenClipTransform:
    """open_clip's transform up to the pixels; the encoder normalises them, in fp32 as open_clip does."""

    def __init__(self, target: Target) -> None:
        whole = open_clip.image_transform(
            (target.height, target.width),
            is_train=False,
            resize_mode=target.resize_mode,
            interpolation=target.interpolation,
            fill_color=target.fill,
        )
        self._to_pixels = whole.transforms[:-2]  # without ToTensor and Normalize

    def decode(self, content: Encoded | Picture, settings: DecodeSettings) -> tuple[Tensor, Decoded] | Reject:
        """The model's input (uint8, CHW) with its facts, or why there is none. What open_clip does not do: an image is
        turned upright beforehand, and put on a background, where the settings say so."""
        upright, background = settings.orientation == "upright", settings.background_rgb

        def transformed(image: Image.Image, orientation: int) -> tuple[Tensor, Decoded]:
            image.load()  # which turns a TIFF
            made = image if background is None else rgb(image, background)
            made = made.transpose(TURNS[orientation]) if upright and orientation > 1 else made
            width, height = made.size
            for step in self._to_pixels:
                made = step(made)
            pixels_CHW = torch.from_numpy(np.array(made)).permute(2, 0, 1)
            return pixels_CHW, Decoded(width=width, height=height, decoder="open_clip")

        return opened(content, settings.max_pixels, transformed)
