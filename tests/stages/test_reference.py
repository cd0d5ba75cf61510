"""`--reference`: open_clip's own transform and fp32, including what they do to palettes, 16-bit gray and EXIF."""

from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from clipbatch.config import DecodeSettings, from_flat, models
from clipbatch.errors import InputError
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.types import Encoded, ItemBatch, ReadBatch
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import GOOD

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Pillow's, of what open_clip does


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One healthy image of every kind."""
    folder, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(11)
    for name, make in GOOD.items():
        suffix, data = make(rng)
        (folder / f"{name}{suffix}").write_bytes(data)
    return folder


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pixels_are_exactly_open_clips(folder: Path, mode: str) -> None:
    paths = [path for path in sorted(folder.iterdir()) if mode != "longest" or path.stem != "png-1x400"]  # it refuses
    target = Target(height=96, width=96, resize_mode=mode, interpolation="bicubic", fill=0)  # type: ignore[arg-type]
    settings = DecodeSettings(decoder="open_clip", orientation="stored")
    stage = Decode(settings, target, batch_size=len(paths), device="cpu")
    slots = tuple(Encoded(data=bytearray(path.read_bytes())) for path in paths)
    batch = stage(ReadBatch(source=ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True), slots=slots))
    transform = open_clip.image_transform(96, is_train=False, resize_mode=mode, mean=(0.0,) * 3, std=(1.0,) * 3)
    for path, pixels_CHW in zip(paths, batch.pixels_BCHW, strict=True):
        with Image.open(path) as image:
            theirs_CHW = transform(image)
        np.testing.assert_array_equal(pixels_CHW.float() / 255, theirs_CHW, err_msg=path.name)


def test_a_reference_run_gives_open_clips_scores_and_is_a_run_of_its_own(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    warm("run", folder, *DEMO, "--reference", "--out", out)
    table = rows(out)
    assert set(table["decoder"].to_pylist()) == {"open_clip"}
    open_clip.add_model_config(models.config_file(models.DEMO))
    model, _, transform = open_clip.create_model_and_transforms(models.DEMO, pretrained=models.weights_file("embedded"))
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    images = []
    for uri in table["uri"].to_pylist():
        with Image.open(uri) as image:
            images.append(transform(image))
    with torch.no_grad():
        text_DL = open_clip.build_zero_shot_classifier(
            model.eval(), open_clip.get_tokenizer(models.DEMO), labels, ["a photo of a {}."]
        )
        image_BD = model.encode_image(torch.stack(images), normalize=True)
        scores_BL = (model.logit_scale.exp() * image_BD @ text_DL).softmax(dim=-1)
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), scores_BL.numpy(), atol=1e-4)
    assert 'orientation is "upright" now' in warm("run", folder, *DEMO, "--out", out, code=3).stderr


def test_reference_sets_three_settings_and_allows_orientation() -> None:
    made = from_flat({"reference": True, "orientation": "upright", "precision": "auto"})
    assert (made.decode.decoder, made.model.precision, made.decode.orientation) == ("open_clip", "fp32", "upright")
    assert from_flat({"reference": True}).decode.orientation == "stored"
    assert from_flat({"reference": False}).decode.decoder == "auto"
    for wrong in ({"precision": "bf16"}, {"decoder": "dali"}, {"reference": "yes"}):
        with pytest.raises(InputError, match="reference"):
            from_flat({"reference": True, **wrong})
