"""Decodes with Pillow and open_clip's own transform. Tests and `parity` compare the other decoders with it.

As in open_clip, palettes are resized before they become RGB, and 16-bit gray is clipped at 255. Limits and statuses are
those of `pil`. It is slow because the whole image is resized before it is cropped.
"""

from __future__ import annotations

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.decode.pil import open_checked
from clipbatch.stages.pillow import TURNS, rgb
from clipbatch.types import Decoded, Encoded, Picture, Reject


class OpenClipTransform:
    """open_clip's transform without its normalisation, which the encoder does, in fp32 as open_clip does."""

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
        """The model's input (uint8, CHW) and its facts, or a Reject. Unlike open_clip, this turns the image upright and
        puts it on a background first, if the settings say so."""
        upright, background = settings.orientation == "upright", settings.background_rgb

        def transformed(image: Image.Image, orientation: int) -> tuple[Tensor, Decoded]:
            image.load()  # Pillow turns a TIFF here
            result = image if background is None else rgb(image, background)
            result = result.transpose(TURNS[orientation]) if upright and orientation > 1 else result
            width, height = result.size
            for step in self._to_pixels:
                result = step(result)
            pixels_CHW = torch.from_numpy(np.array(result)).permute(2, 0, 1)
            return pixels_CHW, Decoded(width=width, height=height, decoder="open_clip")

        return open_checked(content, settings.max_pixels, transformed)
