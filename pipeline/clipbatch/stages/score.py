"""Image and label features -> scores. `score` is pure; the stage around it also brings results to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipbatch.errors import InputError
from clipbatch.stages.cuda import mark, stream_on
from clipbatch.types import Decoded, EmbeddedBatch, ScoredBatch


def score(
    image_BD: Tensor,
    text_LD: Tensor,
    kind: str,
    logit_scale: float,
    logit_bias: float | None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """`scores_BL` in fp32.

    groups: how many labels each group has, where there are several; labels compete within their group alone.
    kind: `softmax` of scaled cosines over a group's labels (Radford et al. 2021, CLIP), `sigmoid` of scaled and shifted
    cosines, each label for itself (Zhai et al. 2023, SigLIP), or the plain `cosine`.
    """
    cosine_BL = image_BD.float() @ text_LD.float().T
    if kind == "cosine":
        return cosine_BL
    logits_BL = cosine_BL * logit_scale + (logit_bias or 0.0)
    if kind == "sigmoid":
        return torch.sigmoid(logits_BL)
    parts = torch.split(logits_BL, list(groups or [len(text_LD)]), dim=-1)
    return torch.cat([torch.softmax(part, dim=-1) for part in parts], dim=-1)


class Score:
    """Called with an `EmbeddedBatch`."""

    def __init__(
        self,
        text_LD: NDArray[np.float32],
        *,
        device: str,
        kind: str,
        logit_scale: float,
        logit_bias: float | None,
        groups: Sequence[int],
        embeddings: bool,
    ) -> None:
        self._text_LD, self._kind = torch.from_numpy(text_LD).to(device), kind
        self._stream = stream_on(device)
        self._logit_scale, self._logit_bias = logit_scale, logit_bias
        self._groups, self._embeddings = groups, embeddings

    @torch.inference_mode()
    def __call__(self, batch: EmbeddedBatch) -> ScoredBatch:
        count = len(batch.outcomes)
        with torch.cuda.stream(self._stream):
            image_BD = torch.as_tensor(batch.image_BD).to(self._text_LD.device)
            scores_BL = score(image_BD, self._text_LD, self._kind, self._logit_scale, self._logit_bias, self._groups)
            scores_BL = _on_its_way(scores_BL[:count])
            embeddings_BD = _on_its_way(image_BD[:count].half()) if self._embeddings else None
            if arrived := mark(self._stream):
                arrived.synchronize()
        scored = [isinstance(outcome, Decoded) for outcome in batch.outcomes]
        if not torch.isfinite(scores_BL[scored]).all():
            raise InputError("the model gives NaN or infinite scores: use --precision bf16 or fp32, or other weights")
        return ScoredBatch(
            source=batch.source,
            outcomes=batch.outcomes,
            scores_BL=scores_BL.numpy(),
            image_BD=None if embeddings_BD is None else embeddings_BD.numpy(),
        )


def _on_its_way(found: Tensor) -> Tensor:
    """`found` in host memory; what comes from a GPU is there when the stream has come so far."""
    if not found.is_cuda:
        return found
    return torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
