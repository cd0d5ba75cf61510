"""Computes heads, and refuses those that were trained for another model.

All is fp32, in blocks of a fixed number of rows that always begin at the same alignment. So the bytes of a row depend
neither on its neighbours nor on how many images a batch has, and a rescoring gives the bits of the run whose embeddings
it reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clipbatch.config import ModelSettings
from clipbatch.config.heads import Activation, Head, HeadFile, Result, check_width, is_for, refused
from clipbatch.errors import InputError
from clipbatch.rundir.records import ModelFacts
from clipbatch.stages.encode.model import quick_gelu

_log = logging.getLogger(__name__)
# Rows of one matrix product. Its last bits depend on how many rows it has.
ROWS_AT_ONCE = 32
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda values: values,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
_RESULTS: dict[Result, Callable[[Tensor], Tensor]] = {
    "values": lambda values: values,
    "probabilities": torch.sigmoid,
    "classes": lambda values: torch.softmax(values, dim=-1),
}


def blocks_of(image_BD: Tensor) -> tuple[Tensor, ...]:
    """`image_BD` in fp32, in blocks of `ROWS_AT_ONCE` rows. Zeros fill the last one."""
    rows = -(-len(image_BD) // ROWS_AT_ONCE) * ROWS_AT_ONCE
    padded_BD = image_BD.new_zeros((rows, image_BD.shape[1]), dtype=torch.float32)
    padded_BD[: len(image_BD)] = image_BD
    return torch.split(padded_BD, ROWS_AT_ONCE)


class Heads:
    """Called with `image_BD`; gives `heads_BO`, float32: the outputs of all heads in turn."""

    def __init__(self, files: Sequence[HeadFile], device: str) -> None:
        # Copies, since the last bits may depend on where an array begins.
        self._networks = [
            (
                file.head,
                [tuple(torch.from_numpy(array).clone().to(device) for array in layer) for layer in file.numbers],
            )
            for file in files
        ]

    @torch.inference_mode()
    def __call__(self, image_BD: Tensor) -> Tensor:
        return torch.cat([self._block(block_BD) for block_BD in blocks_of(image_BD)])[: len(image_BD)]

    def check(self, heads_BO: Tensor, row_ids: Sequence[int]) -> None:
        """Raises: InputError naming the head that gives NaN or infinite values, and the first row. heads_BO: of images.

        row_ids: one for each row of `heads_BO`.
        """
        sizes = [len(head.outputs) for head, _ in self._networks]
        for (head, _), outputs_BO in zip(self._networks, torch.split(heads_BO, sizes, dim=-1), strict=True):
            is_bad_B = ~torch.isfinite(outputs_BO).all(dim=-1)
            if is_bad_B.any():
                row_id = row_ids[int(is_bad_B.int().argmax())]
                raise InputError(
                    f"row {row_id}: --head {head.name}=... gives NaN or infinite values for it: check the head's "
                    "numbers, or leave it out"
                )

    def _block(self, block_BD: Tensor) -> Tensor:
        outputs = []
        for head, layers in self._networks:
            values = block_BD
            for number, (weight, bias) in enumerate(layers):
                values = functional.linear(_ACTIVATIONS[head.activation](values) if number else values, weight, bias)
            outputs.append(_RESULTS[head.result](values))
        return torch.cat(outputs, dim=-1)


def check_model(heads: Sequence[Head], settings: ModelSettings, facts: ModelFacts, width: int, *, anyway: bool) -> None:
    """Whether the heads were trained for this model, which has been loaded, now or when embeddings were saved.

    facts: of the model. width: length of its embeddings. anyway: only the width has to be right.
    Raises: InputError naming the head, what differs and the remedy.
    """
    uses = quick_gelu(settings) if heads and not anyway else None
    if uses is None and not anyway and any(head.quick_gelu is not None for head in heads):
        _log.warning(
            f"the configuration of {settings.model} is not on this machine: whether it uses QuickGELU, as the model "
            "for which the heads were trained, is not checked"
        )
    loaded_sha256 = facts["weights_sha256"]
    for head in heads:
        check_width(head, width, settings.model)
        if anyway:
            continue
        if None not in (head.quick_gelu, uses) and head.quick_gelu != uses:
            trained, runs = ("with", "without") if head.quick_gelu else ("without", "with")
            raise refused(head, f"{head.model} {trained} QuickGELU, and {settings.model} runs {runs} it here")
        if head.weights_sha256 is None and not is_for(head, settings.model, settings.pretrained):
            raise refused(
                head, f"{head.model}, and it does not say for which weights, so {settings.model} may be another"
            )
        if head.weights_sha256 not in (None, loaded_sha256):
            digests = f"sha256 {head.weights_sha256[:12]}..., here {loaded_sha256[:12]}..."
            raise refused(head, f"{head.model} with other weights ({digests})")
