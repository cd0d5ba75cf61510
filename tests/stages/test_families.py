"""Families of models beside plain CLIP, with random weights: preprocessing, padding of prompts and scores as of
open_clip's own transform, tokenizer and model. Each is open_clip's configuration with fewer and narrower layers.

The tokenizers of SigLIP lie on a hub, so a tiny one of their kind is built here; what it is told (cleaning, length,
padding) is what open_clip's configuration tells the real one.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clipbatch.config import DecodeSettings, ModelSettings
from clipbatch.errors import InputError
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, Model, load, text_features
from clipbatch.stages.score import score
from clipbatch.types import Encoded, ItemBatch, ReadBatch
from tests.support.corpus import photo
from tests.support.families import FAMILIES, write_model

PROMPTS = ["A photo of a Cat.", "dog", "the photo of a tall cat, a dog and a zebra's tail"]
Made = tuple[Model, torch.nn.Module, Callable[[Image.Image], torch.Tensor], Callable[[list[str]], torch.Tensor]]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The model as clipbatch loads it, and open_clip's model, transform and tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param)
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return load(ModelSettings(model=name)), model.eval(), transform, open_clip.get_tokenizer(name)


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
