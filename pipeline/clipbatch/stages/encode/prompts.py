"""What a model makes of prompts that a user should know: where its tokenizer cuts them, and words it never learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clipbatch.config import models
from clipbatch.config.label_set import LabelSet

_MAX_NAMED = 5
# How many context lengths are tokenized to see whether a prompt is longer than one.
_LONG = 8
_TEXTS_AT_ONCE = 64
# Characters of a prompt that a remark shows.
_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPrompt:
    """A prompt that is longer than the model's context."""

    text: str
    # What the model sees of it, as its tokenizer writes it.
    kept: str
    # Tokens, with the first and the last one, which mark the beginning and the end.
    context_length: int


def cut_prompts(tokenizer: Any, texts: Sequence[str]) -> list[CutPrompt]:
    """Those of `texts` that do not fit into the context of `tokenizer`, one of open_clip's."""
    length = int(tokenizer.context_length)
    # A token stands for a byte at least, so that only long texts need a look.
    long = sorted({text for text in texts if len(text.encode(errors="replace")) > length - 2})
    return [
        CutPrompt(text=text, kept=kept, context_length=length)
        for text, kept, is_cut in as_read(tokenizer, long)
        if is_cut
    ]


def as_read(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Each text, what the model reads of it as the tokenizer writes it, and whether that is less than all."""
    length = int(tokenizer.context_length)
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[at : at + _TEXTS_AT_ONCE]
        whole, tokens = tokenizer([*some, ""], context_length=_LONG * length), tokenizer(list(some))
        padding = whole[-1, -1]
        for text, row, cut in zip(some, whole[:-1], tokens, strict=True):
            yield text, _decoded(tokenizer, cut), bool((row[length:] != padding).any())


def prompt_remarks(module: Any, tokenizer: Any, model: str, labels: LabelSet) -> list[str]:
    """In sentences: prompts that are cut off, and labels whose words the embedded model does not know.

    module: open_clip's model. model: its name.
    """
    remarks = []
    if cut := cut_prompts(tokenizer, [text for texts in labels.prompts for text in texts]):
        first = cut[0]
        remarks.append(
            f"{len(cut)} {'prompt is' if len(cut) == 1 else 'prompts are'} longer than the {first.context_length} "
            f"tokens that {model} reads, and cut off: {_short(first.text)!r} ends for it with "
            f"{first.kept[-_SHOWN:]!r}; put what matters first, or write a shorter prompt"
        )
    if model == models.DEMO and (unknown := _unknown_labels(module, tokenizer, labels)):
        named = ", ".join(repr(_short(name)) for name in unknown[:_MAX_NAMED])
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        remarks.append(
            f"the embedded model {models.DEMO} does not know {named}{more}: it has learned the ten classes of CIFAR-10 "
            "and nothing else, and cannot tell apart two labels that it does not know; take another --model"
        )
    return remarks


def _unknown_labels(module: Any, tokenizer: Any, labels: LabelSet) -> list[str]:
    """Labels with a word that no caption of the training had: all numbers of its embedding are zero."""
    is_known = module.token_embedding.weight.abs().sum(dim=1) > 0
    unknown = []
    for group in labels.groups:
        for name, phrases in group.phrases.items():
            tokens: torch.Tensor = tokenizer(phrases)
            if not bool(is_known[tokens[tokens != 0]].all()):
                unknown.append(name)
    return unknown


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _decoded(tokenizer: Any, tokens: torch.Tensor) -> str:
    numbers = tokens.tolist()
    if hasattr(tokenizer, "tokenizer"):
        return str(tokenizer.tokenizer.decode(numbers, skip_special_tokens=True)).strip()
    end = numbers.index(tokenizer.eot_token_id)
    return str(tokenizer.decode(numbers[1:end])).strip()
