"""The preprocessing and activation of a loaded model are those that its weights were trained with."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipbatch.config import models
from clipbatch.errors import InputError
from clipbatch.stages.encode.candidates import fitting_models
from clipbatch.stages.encode.model import trained_with
from tests.conftest import Cli


def test_a_tag_sets_preprocessing_and_activation() -> None:
    assert trained_with("ViT-B-32", "openai")["quick_gelu"] is True
    assert trained_with("ViT-B-32", "laion2b_s34b_b79k").get("quick_gelu", False) is False


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP-S1", "PE-Core-B-16", "coca_ViT-B-32"])
def test_a_file_gets_the_preprocessing_of_its_models_published_weights(name: str) -> None:
    published = open_clip.get_pretrained_cfg(name, open_clip.list_pretrained_tags_by_model(name)[0])
    found = trained_with(name, "weights.safetensors")
    assert found == {key: published[key] for key in found}
    assert found.keys() == {"mean", "std", "interpolation", "resize_mode"}


def test_a_file_for_a_model_whose_published_weights_differ_is_refused() -> None:
    with pytest.raises(InputError, match="preprocess_cfg"):
        trained_with("ViT-L-14", "weights.safetensors")


@pytest.mark.parametrize("content", [b"", b"these are no weights", b"\x80\x04N."])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(
    warm: Cli, photos: Path, tmp_path: Path, content: bytes
) -> None:
    for name in ("weights.safetensors", "weights.pt"):
        (tmp_path / name).write_bytes(content)
        settings = ("--labels", "a,b", "--model", "clipbatch-demo", "--pretrained", tmp_path / name)
        error = warm("run", photos, *settings, "--quiet", "--out", tmp_path / "out", code=3).stderr
        assert str(tmp_path / name) in error
        assert error.count("\n") == 1


def test_weights_of_another_model_are_refused_in_one_line_that_names_it(
    warm: Cli, photos: Path, tmp_path: Path
) -> None:
    weights = models.weights_file("embedded")
    settings = ("--labels", "a,b", "--model", "ViT-S-32", "--pretrained", weights)
    error = warm("run", photos, *settings, "--quiet", "--out", tmp_path / "out", code=3).stderr
    assert f"the weights {weights} are not those of ViT-S-32" in error
    assert "they may be for clipbatch-demo; give that --model" in error
    assert error.count("\n") == 1
    torch.manual_seed(0)
    module = open_clip.create_model("ViT-S-32-alt")
    save_file(module.state_dict(), tmp_path / "alt.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, tmp_path / "alt.pt")
    for name in ("alt.safetensors", "alt.pt"):
        assert fitting_models(tmp_path / name, "RN50") == ["ViT-S-32-alt"]  # the text tower tells it from ViT-S-32


def test_scores_that_are_not_numbers_end_the_run(warm: Cli, photos: Path, tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = tmp_path / "broken.json"
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    model = open_clip.create_model("broken")
    state = {**model.state_dict(), "visual.ln_post.weight": torch.full((32,), float("nan"))}
    save_file(state, tmp_path / "broken.safetensors")
    settings = ("--labels", "a,b", "--model", config, "--pretrained", tmp_path / "broken.safetensors")
    error = warm("run", photos, *settings, "--out", tmp_path / "out", code=3).stderr
    assert "row 0: the model gives NaN or infinite scores" in error
    assert list((tmp_path / "out" / "parts").iterdir()) == []
    save_file(model.state_dict() | {"logit_scale": torch.tensor(100.0)}, tmp_path / "huge.safetensors")  # exp(100)
    settings = (*settings[:-1], tmp_path / "huge.safetensors")
    error = warm("run", photos, *settings, "--out", tmp_path / "other", code=3).stderr
    assert "has inf as its logit_scale" in error
    assert not (tmp_path / "other" / "model.json").exists()  # which could not be read again
