"""The text tower for captions: many different texts, each of which is compared with one image.

Label features are few, are computed once for a run, and stay in fp32 (`text`). Captions are as many as the images. So
they are encoded on the device and in the precision of the image tower, in blocks of a fixed number of rows.

A causal tower never looks at what follows the end token. So a short caption goes into a block of short rows, and its
embedding is that of a full row but for rounding. All other towers (SigLIP's) see the padding too, and always get their
whole context. Texts are cleaned, cut and padded by open_clip's own tokenizer, which keeps the end token of a caption
that it cuts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from torch import Tensor
from torch.nn import Parameter, functional

from clipbatch.stages.cuda import mark, stream_on, use_own_threads
from clipbatch.stages.encode.model import DTYPES, Model

# Captions of a block. Other numbers, as other lengths below, would change the last bits of runs that have begun. A core
# takes the same time for a caption in blocks of 16 to 256; in large ones more places stay empty
# (benchmarks/results/2026-11-30-captions.md).
_CPU_ROWS, _GPU_ROWS = 32, 128
# Tokens of a row in a block of short captions.
_LENGTHS = (8, 12, 16, 20, 24, 32, 48)
# What is tokenized of a caption, after runs of white space have become one space, as in open_clip's tokenizers. The
# first thousand characters fill every context; the others are only counted.
MAX_CHARACTERS = 8192
# Words that open_clip's tokenizer may remember. It forgets none by itself.
_MAX_WORDS = 2**20


class TextTower:
    """The text tower of a model, in the precision and on the device of a run's image tower."""

    def __init__(self, model: Model, *, precision: str, device: str) -> None:
        self.rows = _CPU_ROWS if device == "cpu" else _GPU_ROWS
        # How many tokens the model reads of a caption, with the marks of its beginning and end.
        self.context_length = int(model.tokenizer.context_length)
        self._tokenizer, self._device = model.tokenizer, device
        module = _with(model.module, _modules={n: m for n, m in model.module._modules.items() if n != "visual"})
        module = copy.deepcopy(module, _trainable(module)).to(device, DTYPES[precision])
        self._stream = stream_on(device)  # behind what copies and converts the weights
        use_own_threads(self._stream)
        self._is_causal = _is_causal(_text_part(module))
        lengths = [n for n in _LENGTHS if n < self.context_length] if self._is_causal else []
        # By the tokens of a row, the shortest first.
        self._towers = {n: _shortened(module, n) for n in lengths} | {self.context_length: module}

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """`tokens_NT`, as the model reads the captions, and how many tokens the first `MAX_CHARACTERS` of each have."""
        texts = [
            caption if len(caption) <= MAX_CHARACTERS else " ".join(caption.split())[:MAX_CHARACTERS]
            for caption in captions
        ]
        tokens_NT: Tensor = self._tokenizer(texts)
        counts = _count_tokens(self._tokenizer, texts, tokens_NT)
        _forget_words(self._tokenizer)
        return tokens_NT, counts

    def row_lengths(self, tokens_NT: Tensor) -> list[int]:
        """For each row the tokens of the blocks to which it goes."""
        if not self._is_causal:
            return [self.context_length] * len(tokens_NT)
        part = _text_part(self._towers[self.context_length])
        ends = _ends(part, tokens_NT).tolist()
        return [next(length for length in self._towers if end < length) for end in ends]

    @torch.inference_mode()
    def embed(self, tokens_NT: Tensor, length: int) -> NDArray[np.float32]:
        """Unit vectors of up to `rows` captions, whose row length is `length`. Waits for the device."""
        missing = self.rows - len(tokens_NT)
        block_BT = torch.cat([tokens_NT, tokens_NT[:1].expand(missing, -1)])[:, :length]
        with torch.cuda.stream(self._stream):
            text_BD = self._towers[length].encode_text(block_BT.to(self._device))
            text_BD = functional.normalize(text_BD.float(), dim=-1)
            if done := mark(self._stream):
                done.synchronize()
            return np.asarray(text_BD[: len(tokens_NT)].cpu().numpy())


def _with(module: Any, **members: dict[str, Any]) -> Any:
    """A module that shares all of `module` but the given dictionaries of members."""
    other = copy.copy(module)
    other.__dict__.update(members)
    return other


def _trainable(module: Any) -> dict[int, Parameter]:
    """By id, for each parameter one with the same memory that requires a gradient.

    Only for such a weight does torch multiply all tokens of a block as one matrix in `nn.MultiheadAttention`. Otherwise
    it copies the weight for each place of a row, and a CPU takes twice as long. Source: should_fold in torch's
    aten/src/ATen/native/LinearAlgebra.cpp.
    """
    return {id(parameter): Parameter(parameter.detach()) for parameter in module.parameters()}


def _text_part(module: Any) -> Any:
    """The module that holds the text tower's positions and mask."""
    return getattr(module, "text", module)


def _pool_type(part: Any) -> str:
    return str(part.text_pool_type if isinstance(part, open_clip.CLIP) else part.pool_type)


def _is_causal(part: Any) -> bool:
    """Whether the embedding of a text does not depend on what follows its end token."""
    if not isinstance(part, (open_clip.CLIP, TextTransformer)) or getattr(part, "attn_mask", None) is None:
        return False
    return _pool_type(part) in ("argmax", "eos") and getattr(part, "cls_emb", None) is None


def _ends(part: Any, tokens_NT: Tensor) -> Tensor:
    """The place of the token whose features the causal tower returns."""
    if _pool_type(part) == "argmax":
        return tokens_NT.argmax(dim=-1)
    is_end_NT = tokens_NT == (part.text_eos_id if isinstance(part, open_clip.CLIP) else part.eos_id)
    return torch.as_tensor(is_end_NT).int().argmax(dim=-1)


def _shortened(module: Any, length: int) -> Any:
    """The same model, for rows of `length` tokens. It shares all weights."""
    part = _text_part(module)
    short = _with(
        part,
        _parameters={
            **part._parameters,
            "positional_embedding": Parameter(part.positional_embedding[:length], requires_grad=False),
        },
        _buffers={**part._buffers, "attn_mask": part.attn_mask[:length, :length]},
    )
    return short if part is module else _with(module, _modules={**module._modules, "text": short})


def _count_tokens(tokenizer: Any, texts: Sequence[str], tokens_NT: Tensor) -> list[int]:
    if hasattr(tokenizer, "tokenizer"):  # one of Hugging Face's
        added = 3 if tokenizer.tokenizer_mode == "clips" else 0
        whole = tokenizer.tokenizer(
            [tokenizer.clean_fn(text) for text in texts], add_special_tokens=not added, verbose=False
        )
        return [len(ids) + added for ids in whole.input_ids]
    # A row that is not full shows the last of its end tokens; there are more if the caption spells one out.
    length, is_end_NT = tokens_NT.shape[1], tokens_NT == tokenizer.eot_token_id
    fits = length - is_end_NT.flip(1).int().argmax(dim=1)
    return [
        count if count < length else len(tokenizer.encode(text)) + 2
        for text, count in zip(texts, fits.tolist(), strict=True)
    ]


def _forget_words(tokenizer: Any) -> None:
    """Empty the memory of open_clip's tokenizer before it gets too large; its special tokens stay."""
    if len(words := getattr(tokenizer, "cache", ())) > _MAX_WORDS:
        tokenizer.cache = {word: word for word in tokenizer.cache if words[word] == word}
