"""Small models with random weights, of the families that open_clip knows: each is open_clip's configuration with fewer
and narrower layers.

The tokenizers of SigLIP lie on a hub, so a tiny one of their kind is built here; what it is told (cleaning, length,
padding) is what open_clip's configuration tells the real one.
"""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TEXT = {"width": 32, "heads": 2, "layers": 1}
SIGLIP_VISION = {"timm_model_name": "vit_tiny_patch16_224"}
COCA = {"vision_cfg": {"layers": 2, "width": 64, "head_width": 32}, "multimodal_cfg": TEXT}
# open_clip's name -> what its configuration is reduced to.
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT-B-16-SigLIP": {"embed_dim": 192, "vision_cfg": SIGLIP_VISION, "text_cfg": {"vocab_size": 64, "width": 192}},
    "ViT-B-16-SigLIP2": {"embed_dim": 192, "vision_cfg": SIGLIP_VISION, "text_cfg": {"vocab_size": 64, "width": 192}},
    "MobileCLIP2-S0": {"embed_dim": 32},
    "EVA02-B-16": {"embed_dim": 32, "vision_cfg": {"timm_model_name": "eva02_tiny_patch14_224"}},
    "coca_ViT-B-32": {"embed_dim": 32, **COCA},
    "ViT-B-32-quickgelu": {"embed_dim": 32, "vision_cfg": {"layers": 2, "width": 64, "head_width": 32}},
}


def write_model(folder: Path, name: str, *, text_scale: float = 1.0) -> None:
    """A reduced model of the family of `name`, with the preprocessing of its published weights.

    text_scale: by how much the weights of its text tower are larger than when training begins. Then different sentences
    look different to it.
    """
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["text_cfg"] |= TEXT
    for key, value in FAMILIES[name].items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    write_random(folder, name, config, text_scale=text_scale)


def write_random(folder: Path, name: str, config: dict[str, Any], *, text_scale: float = 1.0) -> None:
    """A model of `config` with random weights, and the preprocessing of the published weights of `name`."""
    published = open_clip.get_pretrained_cfg(name, open_clip.list_pretrained_tags_by_model(name)[0])
    preprocess = {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in published}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    if "hf_tokenizer_name" in config["text_cfg"]:
        write_tokenizer(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for parameter in model.visual.parameters():  # so that different images look different to it
            if parameter.dim() > 1:
                parameter.mul_(2)
        for key, parameter in model.named_parameters():
            if not key.startswith("visual.") and parameter.dim() > 1:
                parameter.mul_(text_scale)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")


def write_tokenizer(folder: Path) -> None:
    """A Unigram tokenizer with a few words and all letters, which ends texts with </s>, as SigLIP's T5 does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [("\u2581a", -2.5), ("\u2581photo", -3.0), ("\u2581of", -3.0), ("\u2581cat", -3.5), ("\u2581", -4.0)]
    letters = [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *words, *letters], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
