"""transformers' CLIP with weights drawn at random: model, tokenizer, image processor, made without a network."""

from __future__ import annotations

from typing import Any

import torch

from clipbatch.config import models

_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_SHAPES: dict[str, dict[str, Any]] = {
    "ViT-B-32": {"vision": {**_BASE, "patch_size": 32}, "text": _TEXT, "projection": 512},
    "ViT-B-16": {"vision": {**_BASE, "patch_size": 16}, "text": _TEXT, "projection": 512},
    "ViT-L-14": {
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "text": {**_TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "projection": 768,
    },
    models.DEMO: {  # as small as the embedded model, to try the code out; not the same model
        "vision": {**_BASE, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "image_size": 64,
                   "num_hidden_layers": 2, "patch_size": 16},
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2},
        "projection": 64,
    },
}  # fmt: skip
"""The shapes of openai/clip-vit-base-patch32, -base-patch16 and -large-patch14, by open_clip's names."""


def clip_model(name: str) -> torch.nn.Module:
    """`CLIPModel` of the shape of open_clip's model `name`, in fp32, in evaluation mode."""
    from transformers import CLIPConfig, CLIPModel

    shape = _SHAPES[name]
    torch.manual_seed(0)
    config = CLIPConfig(vision_config=shape["vision"], text_config=shape["text"], projection_dim=shape["projection"])
    return CLIPModel(config).eval()


def clip_processor(name: str) -> Any:
    """`CLIPImageProcessor` with CLIP's mean, standard deviation and size."""
    from transformers import CLIPImageProcessor

    side = _SHAPES[name]["vision"].get("image_size", 224)
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def clip_tokenizer() -> Any:
    """`CLIPTokenizer` over the vocabulary that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    theirs = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    ours = SimpleTokenizer()
    vocabulary = {theirs.get(token, token): number for token, number in ours.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(ours.bpe_ranks))
