"""Decode files as a run does, and what open_clip makes of the same pictures, without a run around it."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from clipbatch.config import DecodeSettings, models
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.types import Decoded, Encoded, ItemBatch, Picture, ReadBatch, Reject

DECODERS = ("torchvision", "dali", "pil")
Outcome = Decoded | Reject


def decoded(
    files: Iterable[bytes | Image.Image], decoder: str, size: int = 64, mode: str = "shortest", **settings: Any
) -> tuple[NDArray[np.uint8], list[Outcome]]:
    """The product's pixels (BHWC) and what became of each file."""
    target = Target(height=size, width=size, resize_mode=mode, interpolation="bicubic", fill=0)  # type: ignore[arg-type]
    slots = [Encoded(data=bytearray(one)) if isinstance(one, bytes) else Picture(image=one) for one in files]
    stage = Decode(DecodeSettings(decoder=decoder, **settings), target, batch_size=len(slots), device="cpu")  # type: ignore[arg-type]
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
    batch = stage(ReadBatch(source=source, slots=tuple(slots)))
    return batch.pixels_BCHW.permute(0, 2, 3, 1).numpy(), [one for one in batch.outcomes if one]


def open_clips(picture: Image.Image, size: int = 64, mode: str = "shortest") -> NDArray[np.uint8]:
    """What open_clip's transform makes of a picture, before it is normalised (HWC)."""
    transform = open_clip.image_transform(size, is_train=False, resize_mode=mode)
    transform.transforms = transform.transforms[:-2]  # without ToTensor and Normalize
    return np.asarray(transform(picture))


@functools.cache
def _model() -> tuple[Any, Any]:
    """The embedded model in fp32, and the last step of its transform."""
    open_clip.add_model_config(models.config_file(models.DEMO))
    weights = models.weights_file("embedded")
    model, _, transform = open_clip.create_model_and_transforms(models.DEMO, pretrained=weights)
    return model.eval(), transform.transforms[-1]


def embedded(pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embeddings (BD) of unit length."""
    model, normalise = _model()
    with torch.no_grad():
        pixels_BCHW = normalise(torch.tensor(pixels_BHWC).permute(0, 3, 1, 2).float() / 255)
        image_BD: NDArray[np.float32] = model.encode_image(pixels_BCHW, normalize=True).numpy()
    return image_BD
