"""Image and label features -> scores. `score` is pure; the stage around it also copies results to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipbatch.config.label_set import LabelSet
from clipbatch.errors import InputError
from clipbatch.stages.cuda import mark, stream_on
from clipbatch.stages.heads import Heads, blocks_of
from clipbatch.types import Decoded, EmbeddedBatch, ScoredBatch


def score(
    image_BD: Tensor,
    text_TD: Tensor,
    kind: str,
    logit_scale: float,
    logit_bias: float | None,
    groups: Sequence[int] | None = None,
    tags: Sequence[bool] | None = None,
) -> Tensor:
    """`scores_BL` in fp32.

    text_TD: a row for each label; in a group of tags, the tags' yes sides, then their no sides.
    groups: how many labels each group has, if there are several; labels compete within their group alone.
    tags: for each group, whether its labels are tags.
    kind: `softmax` of scaled cosines over a group's labels (Radford et al. 2021, CLIP), `sigmoid` of scaled and shifted
    cosines, each label for itself (Zhai et al. 2023, SigLIP), or the plain `cosine`. A tag's score is the softmax of
    its two sides, whatever the kind.
    """
    return _scores(image_BD.float() @ text_TD.float().T, kind, logit_scale, logit_bias, groups, tags)


def _scores(
    cosine_BT: Tensor,
    kind: str,
    logit_scale: float,
    logit_bias: float | None,
    groups: Sequence[int] | None,
    tags: Sequence[bool] | None,
) -> Tensor:
    sizes = list(groups or [cosine_BT.shape[1]])
    are_tags = list(tags or [False] * len(sizes))
    rows = [size * (2 if is_tags else 1) for size, is_tags in zip(sizes, are_tags, strict=True)]
    parts = []
    for part, is_tags in zip(torch.split(cosine_BT, rows, dim=-1), are_tags, strict=True):
        if is_tags:  # the softmax of two values is the sigmoid of their difference
            yes, no = part.chunk(2, dim=-1)
            parts.append(torch.sigmoid((yes - no) * logit_scale))
        elif kind == "cosine":
            parts.append(part)
        elif kind == "sigmoid":
            parts.append(torch.sigmoid(part * logit_scale + (logit_bias or 0.0)))
        else:
            parts.append(torch.softmax(part * logit_scale + (logit_bias or 0.0), dim=-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class Score:
    """Called with an `EmbeddedBatch`."""

    def __init__(
        self,
        text_TD: NDArray[np.float32],
        *,
        device: str,
        kind: str,
        logit_scale: float,
        logit_bias: float | None,
        labels: LabelSet,
        embeddings: bool,
        heads: Heads | None = None,
    ) -> None:
        """embeddings: whether they are saved."""
        self._text_TD, self._kind = torch.from_numpy(text_TD).to(device), kind
        self._stream = stream_on(device)
        self._logit_scale, self._logit_bias = logit_scale, logit_bias
        self._labels, self._embeddings, self._heads = labels, embeddings, heads

    @torch.inference_mode()
    def __call__(self, batch: EmbeddedBatch) -> ScoredBatch:
        count = len(batch.outcomes)
        with torch.cuda.stream(self._stream):
            image_BD = torch.as_tensor(batch.image_BD).to(self._text_TD.device)
            device_BL = self._score(image_BD)[:count]
            shown = device_BL if self._labels.groups else image_BD[:count]
            finite_B = _to_host(torch.isfinite(shown).all(dim=-1))
            scores_BL = _to_host(device_BL)
            heads_BO = _to_host(self._head_outputs(image_BD)[:count])
            embeddings_BD = _to_host(image_BD[:count].half()) if self._embeddings else None
            if arrived := mark(self._stream):
                arrived.synchronize()
        scored = [isinstance(outcome, Decoded) for outcome in batch.outcomes]
        row_ids = batch.source.start + np.flatnonzero(scored)
        if len(bad := row_ids[~finite_B.numpy()[scored]]):
            raise InputError(
                f"row {bad[0]}: the model gives NaN or infinite scores: use --precision bf16 or fp32, or other weights"
            )
        if self._heads:
            self._heads.check(heads_BO[scored], row_ids.tolist())
        return ScoredBatch(
            source=batch.source,
            outcomes=batch.outcomes,
            scores_BL=scores_BL.numpy(),
            image_BD=None if embeddings_BD is None else embeddings_BD.numpy(),
            captions=batch.captions,
            heads_BO=heads_BO.numpy() if self._heads else None,
        )

    def _head_outputs(self, image_BD: Tensor) -> Tensor:
        """Of the embeddings as they are saved, if they are."""
        if self._heads is None:
            return image_BD.new_empty((len(image_BD), 0))
        return self._heads(image_BD.half() if self._embeddings else image_BD)

    def _score(self, image_BD: Tensor) -> Tensor:
        labels, text_DT = self._labels, self._text_TD.float().T
        if labels.scoring is None:
            cosine_BT = image_BD.float() @ text_DT
        else:
            if self._embeddings:
                image_BD = image_BD.half()
            cosine_BT = torch.cat([block_BD @ text_DT for block_BD in blocks_of(image_BD)])[: len(image_BD)]
        return _scores(cosine_BT, self._kind, self._logit_scale, self._logit_bias, labels.sizes, labels.are_tags)


def _to_host(tensor: Tensor) -> Tensor:
    """`tensor` in host memory. A copy from a GPU is complete once the stream has come so far."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
