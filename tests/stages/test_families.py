"""Families of models beside plain CLIP, with random weights: preprocessing, padding of prompts and scores as of
open_clip's own transform, tokenizer and model. Each is open_clip's configuration with fewer and narrower layers.

The tokenizers of SigLIP lie on a hub, so a tiny one of their kind is built here; what it is told (cleaning, length,
padding) is what open_clip's configuration tells the real one.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clipbatch.config import DecodeSettings, ModelSettings
from clipbatch.errors import InputError
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, Model, load, text_features
from clipbatch.stages.score import score
from clipbatch.types import Encoded, ItemBatch, ReadBatch
from tests.support.corpus import photo

PROMPTS = ["A photo of a Cat.", "dog", "the photo of a tall cat, a dog and a zebra's tail"]
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
Made = tuple[Model, torch.nn.Module, Callable[[Image.Image], torch.Tensor], Callable[[list[str]], torch.Tensor]]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The model as clipbatch loads it, and open_clip's model, transform and tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param)
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return load(ModelSettings(model=name)), model.eval(), transform, open_clip.get_tokenizer(name)


def write_model(folder: Path, name: str) -> None:
    """A reduced model of the family of `name`, with the preprocessing of its published weights."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["text_cfg"] |= TEXT
    for key, value in FAMILIES[name].items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = open_clip.get_pretrained_cfg(name, tags[0])
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


def test_images_are_prepared_and_encoded_as_open_clip_does(made: Made, tmp_path: Path) -> None:
    ours, theirs, transform, _ = made
    rng = np.random.default_rng(1)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for path, size in zip(files, ((320, 200), (180, 260), (300, 300)), strict=True):
        photo(rng, *size).save(path)
    target = Target.from_facts(ours.facts())
    slots = tuple(Encoded(data=bytearray(path.read_bytes())) for path in files)
    read = ReadBatch(source=ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True), slots=slots)
    images = []
    for path in files:
        with Image.open(path) as image:
            images.append(transform(image))
    with torch.no_grad():
        theirs_BD = theirs.encode_image(torch.stack(images), normalize=True)
    encode = Encode(ours, precision="fp32", device="cpu", batch_size=len(files))
    apart = float((theirs_BD[0] - theirs_BD[1]).abs().max())
    for decoder, tolerance in (("open_clip", 0.001), ("pil", 0.05)):  # a share of what two images differ by
        decode = Decode(DecodeSettings(decoder=decoder), target, batch_size=3, device="cpu")  # type: ignore[arg-type]
        ours_BD = encode.embed(decode(read).pixels_BCHW)
        assert float((ours_BD - theirs_BD).abs().max()) < tolerance * apart, decoder


def test_prompts_are_padded_and_scored_as_open_clip_does(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, _, tokenizer = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokens = tokenizer(PROMPTS)
    np.testing.assert_array_equal(ours.tokenizer(PROMPTS), tokens)
    assert tokens.shape[1] == (theirs.text.context_length if hasattr(theirs, "text") else theirs.context_length)
    assert int(tokens[1, -1]) == 0  # a short prompt is padded with zeros
    text_LD = torch.from_numpy(text_features(ours, [[prompt] for prompt in PROMPTS]))
    image_BD = torch.nn.functional.normalize(torch.randn(4, text_LD.shape[1], generator=torch.manual_seed(2)), dim=-1)
    with torch.no_grad():
        theirs_LD = theirs.encode_text(tokens, normalize=True)
        logits_BL = theirs.logit_scale.exp() * image_BD @ theirs_LD.T
        bias = getattr(theirs, "logit_bias", None)
        expected_BL = logits_BL.softmax(dim=-1) if bias is None else torch.sigmoid(logits_BL + bias)
    np.testing.assert_allclose(text_LD, theirs_LD, atol=1e-5)
    kind = "softmax" if ours.logit_bias is None else "sigmoid"
    scores_BL = score(image_BD, text_LD, kind, ours.logit_scale, ours.logit_bias)
    np.testing.assert_allclose(scores_BL, expected_BL, rtol=1e-3)
    assert (kind == "sigmoid") == ("SigLIP" in ours.name)
    assert ours.resize_mode == ("squash" if "SigLIP" in ours.name else "shortest")


def test_prompts_are_cleaned_as_the_family_does(tmp_path: Path) -> None:
    write_model(tmp_path, "ViT-B-16-SigLIP")
    tokens = load(ModelSettings(model=f"local-dir:{tmp_path}")).tokenizer(["A Photo, of a CAT!", "a photo of a cat"])
    np.testing.assert_array_equal(tokens[0], tokens[1])  # lower case, without punctuation
    assert tokens[0, :6].tolist() == [3, 4, 5, 3, 6, 1]


def test_a_tokenizer_whose_package_is_missing_is_refused_with_the_package_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "ViT-B-16-SigLIP")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers"):
        load(ModelSettings(model=f"local-dir:{tmp_path}"))
