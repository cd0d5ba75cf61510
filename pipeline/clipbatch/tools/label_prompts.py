"""Which prompts a model's tokenizer cuts off, found by a process that may import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipbatch.config import models
from clipbatch.workers.child import Child, raise_failure

# Its tokenizer is that of nearly all CLIP models, and comes with open_clip.
_DEFAULT = "ViT-B-32"
# Of nearly all CLIP models; fewer bytes than tokens cannot be too long.
_CONTEXT_LENGTH = 77
_START_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrompt:
    """A prompt as a model reads it."""

    # As the tokenizer writes what is left of it.
    kept: str
    is_cut: bool


def cut_off(texts: Sequence[str], model: str | None, pretrained: str | None) -> tuple[str, dict[str, ModelPrompt]]:
    """The model that was asked, and each of `texts` as it reads it.

    model: None for CLIP's usual tokenizer, and then only texts that may be too long are looked at.
    Raises: InputError for a model that does not exist, or whose tokenizer cannot be had.
    """
    name = models.canonical(model or _DEFAULT)
    asked = sorted({text for text in texts if model or len(text.encode(errors="replace")) > _CONTEXT_LENGTH - 2})
    if not asked:
        return name, {}
    with Child("clipbatch.tools.label_prompts_main", name, pretrained or "") as child:
        child.send(asked)
        found = child.receive(_START_S)
        raise_failure(found)
    return name, {text: ModelPrompt(**found[text]) for text in asked}
