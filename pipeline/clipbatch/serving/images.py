"""Turns what callers pass into items: paths and urls to be read, or images in memory. It opens and decodes nothing.

A value whose type cannot be an image is the caller's mistake and raises TypeError. An image that is damaged becomes a
row with a status.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Union

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from clipbatch.storage.uris import is_outside, path_of, uri_of
from clipbatch.types import Encoded, Item, ItemBatch, Picture, ReadBatch, Reject

# A path or url, the bytes of an image file, a PIL image, a NumPy array (uint8, HWC, HW), a tensor (uint8, CHW, HW).
AnyImage = Union[str, os.PathLike[str], bytes, bytearray, memoryview, Image.Image, NDArray[np.uint8], torch.Tensor]
_BYTES = (bytes, bytearray, memoryview)
_CHANNELS = (1, 3, 4)
ROWS = pa.schema([("row_id", pa.int64()), ("uri", pa.string())])


def to_batches(
    images: Iterable[AnyImage] | AnyImage, size: int, *, root: str | None, max_bytes: int
) -> Iterator[ItemBatch]:
    """Yield batches of `size` images; the last one may be smaller. `images` may be one image, and is read only as far
    as the current batch.

    root: the folder or url that relative names start from and that no name may leave. max_bytes: of an image file.
    Raises: TypeError for a value that is not an image, with its position.
    """
    remaining = iter([images] if is_image(images) else _iterable(images))
    start = 0
    while chunk := list(islice(remaining, size)):
        items = tuple(_item(image, start + at, root, max_bytes) for at, image in enumerate(chunk))
        uris = [item.uri or None for item in items]
        rows = pa.table([range(start, start + len(items)), uris], schema=ROWS)
        yield ItemBatch(shard=0, start=start, items=items, rows=rows, last=False)
        start += len(items)


def already_read(batch: ItemBatch) -> ReadBatch | None:
    """`batch` as the read stage would return it, if no image in it has to be read; otherwise None."""
    slots = tuple(item.reject or item.content if item else None for item in batch.items)
    return ReadBatch(source=batch, slots=slots) if all(slots) else None


def is_image(value: object) -> bool:
    """Whether `value` is one image and not a collection of images."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim in (2, 3)  # an array with one dimension holds names
    return isinstance(value, (str, os.PathLike, *_BYTES, Image.Image))


def _iterable(images: Any) -> Iterable[Any]:
    if not isinstance(images, Iterable):
        raise TypeError(f"{_shown(images)} is neither an image nor an iterable of images")
    return images


def _item(image: Any, number: int, root: str | None, max_bytes: int) -> Item:
    if isinstance(image, (str, os.PathLike)):
        return _named(os.fspath(image), number, root)
    content: Encoded | Picture
    if isinstance(image, _BYTES):
        size = image.nbytes if isinstance(image, memoryview) else len(image)
        if not size:
            return Item(row_id=number, uri="", path="", reject=Reject(status="empty", error="0 bytes"))
        if size > max_bytes:
            reject = Reject(status="too_large", error=f"{size} bytes, over the limit of {max_bytes}")
            return Item(row_id=number, uri="", path="", reject=reject)
        content = Encoded(data=bytearray(image))
    elif isinstance(image, Image.Image):
        content = Picture(image=image)
    elif isinstance(image, np.ndarray):
        content = Picture(image=_from_array(image, number, "HWC", image))
    elif isinstance(image, torch.Tensor):
        array_HWC = image.detach().cpu().numpy() if image.dtype == torch.uint8 else None
        if array_HWC is not None and array_HWC.ndim == 3:
            array_HWC = array_HWC.transpose(1, 2, 0)
        content = Picture(image=_from_array(array_HWC, number, "CHW", image))
    else:
        raise TypeError(
            f"image {number} is {_shown(image)}: give a path, a url, bytes, a PIL image, a uint8 array (HWC), or a "
            "uint8 tensor (CHW)"
        )
    return Item(row_id=number, uri="", path="", content=content)


def _named(name: str | bytes, number: int, root: str | None) -> Item:
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    uri = uri_of(name, root or "/")
    path = path_of(uri, root or "")
    reject = None
    if not name:
        reject = Reject(status="missing", error="no name")
    elif root is not None and is_outside(path, root):
        reject = Reject(status="unreadable", error=f"outside of root {root}")
    return Item(row_id=number, uri=uri, path=path, fence=root, reject=reject)


def _from_array(array_HWC: NDArray[Any] | None, number: int, order: str, value: Any) -> Image.Image:
    """A PIL image from an array. One channel means gray; a fourth channel is alpha."""
    if (
        array_HWC is None
        or array_HWC.dtype != np.uint8
        or not (array_HWC.ndim == 2 or (array_HWC.ndim == 3 and array_HWC.shape[2] in _CHANNELS))
    ):
        raise TypeError(f"image {number} is {_shown(value)}: give uint8 in the order {order}, with 1, 3 or 4 channels")
    if array_HWC.ndim == 3 and array_HWC.shape[2] == 1:
        array_HWC = array_HWC[:, :, 0]
    if not array_HWC.size:  # Pillow refuses an empty array; an image of that size gets a status in its row
        return Image.new("RGB", (array_HWC.shape[1], array_HWC.shape[0]))
    return Image.fromarray(np.ascontiguousarray(array_HWC))


def _shown(value: Any) -> str:
    """`value` for an error message."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"a {type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
