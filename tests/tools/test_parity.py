"""Right answers: pixels, embeddings and labels against open_clip's own transform and model in fp32."""

import io
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import save_file

from clipbatch.config import DecodeSettings, models
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.types import Decoded, Encoded, ItemBatch, ReadBatch
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import GOOD, photo

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def files(photos: Path) -> dict[str, bytes]:
    """Photographs and one healthy image of every kind, by name."""
    rng = np.random.default_rng(3)
    kinds = {name: make(rng)[1] for name, make in GOOD.items()}
    return {path.name: path.read_bytes() for path in sorted(photos.glob("*.jpg"))} | kinds


def reference(data: bytes, size: int, mode: str = "shortest") -> Pixels:
    """open_clip's transform without its normalisation, on the upright image; CHW."""
    transform = open_clip.image_transform(size, is_train=False, resize_mode=mode)
    transform.transforms = transform.transforms[:-2]  # without ToTensor and Normalize
    return np.asarray(transform(rgb(data))).transpose(2, 0, 1)


def rgb(data: bytes) -> Image.Image:
    """The upright image in 8-bit RGB, or RGBA where it is transparent: what open_clip is compared on (16-bit gray
    scaled, where Pillow would clip)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def decoded(files: dict[str, bytes], decoder: str, size: int, mode: str = "shortest") -> tuple[list[Pixels], list[str]]:
    """The product's pixels for each file, and the name of the decoder that made them."""
    target = Target(height=size, width=size, resize_mode=mode, interpolation="bicubic", fill=0)  # type: ignore[arg-type]
    stage = Decode(DecodeSettings(decoder=decoder), target, batch_size=len(files), device="cpu")  # type: ignore[arg-type]
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
    slots = tuple(Encoded(data=bytearray(data)) for data in files.values())
    batch = stage(ReadBatch(source=source, slots=slots))
    assert all(isinstance(outcome, Decoded) for outcome in batch.outcomes), batch.outcomes
    names = [outcome.decoder for outcome in batch.outcomes if isinstance(outcome, Decoded)]
    return list(batch.pixels_BCHW.numpy()), names


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("decoder", ["torchvision", "dali", "pil"])
def test_pixels_are_open_clips(files: dict[str, bytes], decoder: str, size: int) -> None:
    pixels, decoders = decoded(files, decoder, size)
    off = {
        name: float(np.abs(ours.astype(int) - reference(data, size)).mean())
        for (name, data), ours in zip(files.items(), pixels, strict=True)
    }
    assert decoders.count(decoder) >= len(files) * 0.8
    assert np.mean(list(off.values())) <= 0.2
    assert {name: value for name, value in off.items() if value > 1.0} == {}


@pytest.mark.parametrize("mode", ["squash", "longest"])
@pytest.mark.parametrize("decoder", ["torchvision", "dali", "pil"])
def test_the_models_resize_mode_is_followed(files: dict[str, bytes], decoder: str, mode: str) -> None:
    files = {name: data for name, data in files.items() if name != "png-1x400"}  # open_clip refuses it in `longest`
    pixels, _ = decoded(files, decoder, 96, mode)
    off = [
        np.abs(ours.astype(int) - reference(data, 96, mode)).mean()
        for data, ours in zip(files.values(), pixels, strict=True)
    ]
    assert np.mean(off) <= 0.2


def test_heic_is_decoded_where_pillow_heif_is_installed() -> None:
    picture, file = photo(np.random.default_rng(0), 300, 200), io.BytesIO()
    picture.save(file, "HEIF", quality=-1)  # lossless
    (pixels,), decoders = decoded({"heic": file.getvalue()}, "torchvision", 64)
    assert decoders == ["pil"]
    assert np.abs(pixels.astype(int) - reference(file.getvalue(), 64)).mean() <= 0.2


@pytest.mark.parametrize(("precision", "least_cosine"), [("fp32", 0.999), ("bf16", 0.998)])
def test_embeddings_and_labels_are_open_clips(
    warm: Cli, files: dict[str, bytes], tmp_path: Path, precision: str, least_cosine: float
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate(files.values()):
        (folder / f"{number:04d}.jpg").write_bytes(data)
    warm("run", folder, *DEMO, "--precision", precision, "--embeddings", "--out", tmp_path / "out")
    table = rows(tmp_path / "out")
    open_clip.add_model_config(models.config_file(models.DEMO))
    weights = models.weights_file("embedded")
    model, _, transform = open_clip.create_model_and_transforms(models.DEMO, pretrained=weights)
    images = [rgb(data) for data in files.values()]
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with torch.no_grad():
        theirs_BD = model.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        text_DL = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer(models.DEMO), labels, ["a photo of a {}."]
        )
        scores_BL = (model.logit_scale.exp() * theirs_BD @ text_DL).softmax(dim=-1)
    ours_BD = torch.tensor(np.array(table["embedding"].to_pylist(), np.float32))
    cosine_B = torch.nn.functional.cosine_similarity(ours_BD, theirs_BD)
    best_B = [labels[index] for index in scores_BL.argmax(dim=1)]
    agreed = np.mean([a == b for a, b in zip(table["label"].to_pylist(), best_B, strict=True)])
    assert cosine_B.mean() >= least_cosine
    assert agreed >= (0.995 if precision == "fp32" else 0.98)
    if precision == "fp32":
        assert np.abs(np.array(table["scores"].to_pylist()) - scores_BL.numpy()).max() < 0.05


def _save_model(folder: Path, config: dict[str, object], preprocess: dict[str, object]) -> tuple[Path, torch.nn.Module]:
    """A model of random weights as a folder that `--model local-dir:FOLDER` takes."""
    import json

    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    (folder / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny")
    (folder / "tiny.json").unlink()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder, model


def test_a_vision_transformer_of_the_siglip_kind_gets_sigmoid_scores_and_squashed_images(
    warm: Cli, photos: Path, tmp_path: Path
) -> None:
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}
    config: dict[str, object] = {
        "embed_dim": 32,
        "init_logit_bias": -4,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder, model = _save_model(tmp_path / "tiny-siglip", config, preprocess)
    settings = ("--model", f"local-dir:{folder}", "--precision", "fp32", "--labels", "cat,dog,bird", "--limit", 40)
    warm("run", photos, *settings, "--out", tmp_path / "out")
    table = rows(tmp_path / "out")
    transform = open_clip.image_transform(64, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash")
    images = [transform(Image.open(uri)) for uri in table["uri"].to_pylist()]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(
        [f"a photo of a {name}." for name in ("cat", "dog", "bird")]
    )
    with torch.no_grad():
        image_BD = model.eval().encode_image(torch.stack(images), normalize=True)
        text_LD = model.encode_text(tokens, normalize=True)
        scores_BL = torch.sigmoid(model.logit_scale.exp() * image_BD @ text_LD.T + model.logit_bias)
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), scores_BL.numpy(), atol=2e-3)
    assert table.schema.metadata[b"clipbatch.score"] == b"sigmoid"
