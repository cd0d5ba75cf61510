"""`clipbatch export onnx`: ONNX Runtime on the file against open_clip's own transform and model."""

import copy
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipbatch.config import ModelSettings, models
from clipbatch.errors import InputError
from clipbatch.stages.encode import load
from clipbatch.stages.encode.onnx_export import export_onnx
from tests.conftest import Cli
from tests.support.corpus import photo
from tests.support.families import TEXT, write_random

FULL_TOWERS = {"ViT-B-32": {}, "ViT-B-16-SigLIP": {"vocab_size": 64}}
"""The image towers as they are; of their text towers only a layer."""


def write_whole(folder: Path, name: str) -> None:
    """open_clip's model `name` with random weights, its image tower whole, below `folder`."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    width = {"width": config["embed_dim"]} if "SigLIP" in name else {}
    config["text_cfg"] |= TEXT | width | FULL_TOWERS[name]
    write_random(folder, name, config)


def pictures(count: int, size: int) -> list[Image.Image]:
    """Photographs of the model's size, so that nothing has to be resized."""
    rng = np.random.default_rng(7)
    return [photo(rng, size, size) for _ in range(count)]


def pixels_of(images: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


def embeddings_of(path: Path, images: list[Image.Image]) -> NDArray[np.float32]:
    """What ONNX Runtime makes of `images`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image_BD,) = session.run(["embedding"], {"pixels": pixels_of(images)})
    return np.asarray(image_BD)


@torch.no_grad()
def reference(
    model: torch.nn.Module, transform: Callable[[Image.Image], torch.Tensor], images: list[Image.Image]
) -> NDArray[np.float32]:
    """What open_clip makes of `images`."""
    found: torch.Tensor = model.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    return found.numpy()


@pytest.mark.parametrize("name", [*FULL_TOWERS, models.DEMO])
def test_onnx_runtime_computes_what_open_clip_does(name: str, cli: Cli, tmp_path: Path) -> None:
    model = name
    if name in FULL_TOWERS:
        write_whole(tmp_path, name)
        model = f"local-dir:{tmp_path}"
    out = tmp_path / "out" / "model.onnx"
    made = json.loads(cli("export", "onnx", "--model", model, "--labels", "cat,dog", "--out", out, "--json").stdout)
    if name == models.DEMO:
        open_clip.add_model_config(models.config_file(name))
    weights = {"pretrained": models.weights_file("embedded")} if name == models.DEMO else {}
    theirs, _, transform = open_clip.create_model_and_transforms(model, **weights)
    size = made["preprocess"]["height"]
    for count in (1, 17):
        images = pictures(count, size)
        ours_BD, theirs_BD = embeddings_of(out, images), reference(theirs, transform, images)
        assert ours_BD.dtype == np.float32
        assert float((ours_BD * theirs_BD).sum(axis=1).min()) >= 0.99999
        np.testing.assert_allclose(np.linalg.norm(ours_BD, axis=1), 1, atol=1e-5)
    assert float((theirs_BD @ theirs_BD.T).min()) < 0.9  # or any embedding would do
    assert made == json.loads(out.with_suffix(".json").read_text())
    assert made["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out, out.with_suffix(".labels.npy"))
    }
    tokens = open_clip.get_tokenizer(model)(["a photo of a cat.", "a photo of a dog."])
    with torch.no_grad():
        theirs_LD = theirs.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(np.load(out.with_suffix(".labels.npy")), theirs_LD, atol=1e-5)
    sigmoid = "SigLIP" in name
    assert (made["score"], made["preprocess"]["resize_mode"]) == (
        ("sigmoid", "squash") if sigmoid else ("softmax", "shortest")
    )
    assert made["logit_scale"] == pytest.approx(theirs.logit_scale.exp().item())
    assert made["labels"][0]["names"] == ["cat", "dog"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.json", "model.labels.npy", "model.onnx"]


def test_a_file_for_gpus_has_the_batch_and_the_precision_that_were_asked_for(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    export = ("export", "onnx", "--model", models.DEMO, "--out")
    cli(*export, out, "--precision", "fp16", "--batch-size", 5)
    cli(*export, tmp_path / "exact.onnx")
    images = pictures(5, 64)
    half_BD, exact_BD = embeddings_of(out, images), embeddings_of(tmp_path / "exact.onnx", images)
    assert float((half_BD * exact_BD).sum(axis=1).min()) > 0.999
    assert out.stat().st_size < 0.6 * (tmp_path / "exact.onnx").stat().st_size
    said = json.loads(out.with_suffix(".json").read_text())
    assert (said["precision"], said["input"]["shape"]) == ("fp16", [5, 3, 64, 64])
    assert "labels" not in said
    with pytest.raises(Exception, match="Got invalid dimensions"):
        embeddings_of(out, images[:4])


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(warm: Cli, tmp_path: Path) -> None:
    (tmp_path / "there.json").touch()
    export = ("export", "onnx", "--model", models.DEMO)
    for wrong, said in (
        (("--out", tmp_path / "model.pt"), "ends in .onnx"),
        (("--out", tmp_path / "there.onnx"), "there.json is there already"),
        (("--out", tmp_path / "a.onnx", "--precision", "bf16"), "use fp32 or fp16"),
        (("--out", tmp_path / "a.onnx", "--labels", "cat"), "is not a comma-separated list"),
        (("--out", tmp_path / "a.onnx", "--pretrained", "nowhere.pt"), "nowhere.pt: there is no such file"),
    ):
        assert said in warm(*export, *wrong, code=3).stderr, wrong
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
    model = load(ModelSettings(model=models.DEMO, pretrained=models.weights_file("embedded")))
    tower = model.module.visual.forward
    model.module.visual.forward = lambda image: tower(image).flip(1) if torch.compiler.is_exporting() else tower(image)
    with pytest.raises(InputError, match=r"computes other embeddings than torch does \(cosine "):
        export_onnx(model, tmp_path / "b.onnx", precision="fp32", batch_size=None)
    model.module.visual.forward = lambda image: torch.special.airy_ai(tower(image))  # which ONNX does not know
    with pytest.raises(InputError, match=r"cannot be exported to ONNX: .*; use another model, or serve this one by"):
        export_onnx(model, tmp_path / "c.onnx", precision="fp32", batch_size=None)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(ModelSettings(model=models.DEMO, pretrained=models.weights_file("embedded")))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"needs the package onnxscript: pip install 'clipbatch\[export\]'"):
        export_onnx(model, tmp_path / "a.onnx", precision="fp32", batch_size=None)
