"""The linear layers of an image tower in fp8 (e4m3, scaled by row), and how much accuracy that costs.

Weights are scaled once, activations for each batch; each row is scaled by its own largest value, so no image affects
another. All other parts (convolutions, norms, attention itself, the last projection) stay in bf16. This works for the
models that open_clip builds itself and those of timm.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from clipbatch.errors import InputError

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max
# The hardware needs inputs and outputs of a layer in multiples of this. Other layers stay as they are.
_MULTIPLE = 16
# The lowest CUDA capability with fp8 products: Ada and Hopper.
_CAPABILITY = (8, 9)
# The loss is measured on the first images of a worker, this many.
COMPARED = 256


def check_chip(device: str) -> None:
    """Raises: InputError if `device` has no fp8 products."""
    capability = torch.cuda.get_device_capability(device) if device.startswith("cuda") else None
    if capability is None or capability < _CAPABILITY:
        what = "a CPU" if capability is None else f"of capability {capability[0]}.{capability[1]}"
        raise InputError(
            f"--precision fp8 needs a GPU of CUDA capability {_CAPABILITY[0]}.{_CAPABILITY[1]} or later, and {device} "
            f"is {what}: use --precision fp16 or bf16"
        )


class Linear(nn.Module):
    """A linear layer that multiplies in fp8. Its input and output are bf16."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        scale_O1 = _scale(weight_OI)
        self.register_buffer("weight", (weight_OI.float() / scale_O1).to(_FP8))
        self.register_buffer("scale", scale_O1.T.contiguous())
        self.register_buffer("bias", None if bias_O is None else bias_O.to(torch.bfloat16))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        scale_R1 = _scale(rows)
        outputs = torch._scaled_mm(
            (rows.float() / scale_R1).to(_FP8),
            self.weight.T,
            scale_a=scale_R1,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
        )
        return outputs.view(*inputs.shape[:-1], -1)


class Attention(nn.Module):
    """Self-attention like `nn.MultiheadAttention(batch_first=True)`, with fp8 projections."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self._heads = attention.num_heads
        self.qkv = Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = Linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, query: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        batch, tokens, width = query.shape
        q, k, v = self.qkv(query).view(batch, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width)), None


def to_fp8(tower: nn.Module) -> None:
    """Replace the layers of `tower` that can compute in fp8. `tower` must be on its device."""
    for name, layer in list(tower.named_children()):
        if isinstance(layer, nn.Linear) and _fits(layer.weight):
            setattr(tower, name, Linear(layer.weight, layer.bias))
        elif isinstance(layer, AttentionPool2d) or getattr(layer, "q_bias", None) is not None:
            continue  # ResNets of CLIP and EVA in timm read the weights of these layers and do not call them
        elif isinstance(layer, nn.MultiheadAttention):  # its layers are not called either
            if isinstance(tower, ResidualAttentionBlock) and layer.batch_first and _fits(layer.in_proj_weight):
                setattr(tower, name, Attention(layer))
        else:
            to_fp8(layer)


class Loss:
    """Compares embeddings with those of an fp32 copy of the tower, which it deletes after `COMPARED` images."""

    def __init__(self, tower: nn.Module, device: str) -> None:
        """tower: in fp32, before any conversion."""
        self._tower: nn.Module | None = copy.deepcopy(tower).to(device)
        self._cosines: list[float] = []

    @property
    def wanted(self) -> bool:
        """Whether more images are to be compared."""
        return self._tower is not None

    def compare(self, normal_BCHW: Tensor, image_BD: Tensor) -> None:
        """normal_BCHW: the tower's input, float32. image_BD: the embeddings that the fp8 tower computed from it."""
        assert self._tower
        with torch.backends.cudnn.flags(allow_tf32=False):  # on by default, and TF32 has a mantissa of only 10 bits
            outputs = self._tower(normal_BCHW)
        exact_BD = outputs[0] if isinstance(outputs, tuple) else outputs  # CoCa's tower also returns tokens
        self._cosines += functional.cosine_similarity(exact_BD.float(), image_BD.float()).tolist()
        if len(self._cosines) >= COMPARED:
            self._tower = None

    def facts(self) -> dict[str, float]:
        """How far the embeddings are from those of fp32, for the report. Empty if no image was compared."""
        if not self._cosines:
            return {}
        mean = sum(self._cosines) / len(self._cosines)
        return {
            "fp8_images": len(self._cosines),
            "fp8_cosine_mean": round(mean, 6),
            "fp8_cosine_worst": round(min(self._cosines), 6),
        }


def _fits(weight_OI: Tensor) -> bool:
    return all(size % _MULTIPLE == 0 for size in weight_OI.shape)


def _scale(rows: Tensor) -> Tensor:
    """A divisor for each row that maps its largest value to that of fp8; float32, one column."""
    return rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
