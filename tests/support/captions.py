"""Captions as people have them, and open_clip's cosine of an image and its caption. Nothing here knows `clipbatch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

_THINGS = ("a cat", "two dogs", "a red ship", "an old truck", "some deer", "a frog", "a horse and a bird")
_PLACES = ("on a sofa", "in the evening light", "by the sea", "in a field of wheat", "at night", "behind a fence")

# Caption -> why it cannot be compared; None if it can. Bytes are as they are in the file.
ODD: dict[bytes | None, str | None] = {
    None: "null",
    b"": "empty",
    b" \n\t": "empty",
    b"caf\xe9 au lait": "not UTF-8",
    b"\xed\xa0\x80 half a pair": "not UTF-8",
    " ".join(f"word{number}" for number in range(400)).encode(): None,
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 a family".encode(): None,
    "\u0642\u0637\u0629 \u0639\u0644\u0649 \u0623\u0631\u064a\u0643\u0629".encode(): None,
    "\u4e00\u53ea\u732b\u5750\u5728\u6c99\u53d1\u4e0a".encode() * 30: None,
    b"<end_of_text> and then more": None,
    b"&lt;b&gt;bold&lt;/b&gt; &amp;amp; caf\xc3\x83\xc2\xa9": None,
    b"a\x00b": None,
    b"!!! ??? ...": None,
    b"\xef\xbb\xbfwith a mark of byte order": None,
}


def sentences(count: int) -> list[bytes]:
    """Captions of 6 to 30 words; a tenth of them are equal to another."""
    rng = np.random.default_rng(4)
    return [
        f"a photo of {' and '.join(rng.choice(_THINGS, rng.integers(1, 5)))} {rng.choice(_PLACES)}"
        f"{'' if number % 10 == 0 else f', number {number}'}".encode()
        for number in range(count)
    ]


def mixed(count: int) -> list[bytes | None]:
    """`count` captions, one in eight of them odd."""
    odd = list(ODD)
    return [odd[number // 8 % len(odd)] if number % 8 == 5 else text for number, text in enumerate(sentences(count))]


def reason(caption: bytes | None) -> str | None:
    """Why `caption` cannot be compared; None if it can."""
    return ODD.get(caption)


_AT_ONCE = 50


@torch.inference_mode()
def pairwise(name: str, images: Sequence[Path], captions: Sequence[bytes], **loading: Any) -> NDArray[np.float64]:
    """open_clip's cosine of each image with its caption."""
    model, _, transform = open_clip.create_model_and_transforms(name, **loading)
    tokenizer, cosines = open_clip.get_tokenizer(name), []
    model.eval()
    for at in range(0, len(images), _AT_ONCE):
        pixels = []
        for path in images[at : at + _AT_ONCE]:
            with Image.open(path) as image:
                pixels.append(transform(image))
        texts = [caption.decode().removeprefix("\ufeff") for caption in captions[at : at + _AT_ONCE]]
        image_BD = model.encode_image(torch.stack(pixels), normalize=True).double()
        text_BD = model.encode_text(tokenizer(texts), normalize=True).double()
        cosines.append((image_BD * text_BD).sum(dim=-1).numpy())
    return np.concatenate(cosines)
