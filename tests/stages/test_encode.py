"""The encode stage: the same numbers as open_clip's own steps, and what happens if memory does not suffice."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch._dynamo.utils import counters

from clipbatch.errors import InputError
from clipbatch.stages.encode import Encode, Model, fp8
from clipbatch.types import ItemBatch, PixelBatch

SIZE, BATCH = 32, 8


class Tower(nn.Module):
    """An image tower; raises as a GPU does where more than `most` images are in hand."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.GELU(), nn.Flatten(), nn.Linear(16 * 16, 24))
        self.most, self.seen = most, list[int]()

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append(len(images_BCHW))
        if len(images_BCHW) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        made: Tensor = self.visual(images_BCHW)
        return made


def model_of(tower: nn.Module) -> Model:
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(Model)}
    preprocess = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "height": SIZE, "width": SIZE}
    return Model(**fields | preprocess | {"module": tower})


def batch_of(seed: int, images: int = BATCH) -> PixelBatch:
    pixels_BHWC = torch.randint(
        0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
    return PixelBatch(source=source, outcomes=(None,) * images, pixels_BCHW=pixels_BHWC.permute(0, 3, 1, 2))


def reference(tower: Tower, batch: PixelBatch) -> Tensor:
    """As torchvision's ToTensor and Normalize and open_clip's `encode_image(normalize=True)` do it, in float64."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)))
    images = (batch.pixels_BCHW.double() / 255 - mean) / std
    with torch.no_grad():
        return nn.functional.normalize(tower.visual.double()(images), dim=-1)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2), ("fp16", 1e-3)])
def test_embeddings_are_those_of_the_separate_steps(precision: str, tolerance: float) -> None:
    encode = Encode(model_of(Tower(BATCH)), precision=precision, device="cpu", batch_size=BATCH)
    made = encode(batch_of(1)).image_BD
    assert isinstance(made, Tensor)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), reference(Tower(BATCH), batch_of(1)), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("images", "slots"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (8, 8)])
def test_a_batch_that_is_not_full_costs_little_more_than_its_images(images: int, slots: int) -> None:
    tower = Tower(BATCH)
    made = Encode(model_of(tower), precision="fp32", device="cpu", batch_size=BATCH)(batch_of(1, images)).image_BD
    assert tower.seen == [slots]
    whole = reference(Tower(BATCH), batch_of(1))
    torch.testing.assert_close(torch.as_tensor(made).double(), whole[:slots], rtol=0, atol=1e-6)


def test_batches_that_do_not_fit_are_encoded_in_halves_from_then_on_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tower = Tower(most=3)
    encode = Encode(model_of(tower), precision="fp32", device="cpu", batch_size=BATCH)
    for seed in (1, 2):
        made = encode(batch_of(seed)).image_BD
        torch.testing.assert_close(
            torch.as_tensor(made).double(), reference(Tower(BATCH), batch_of(seed)), rtol=0, atol=1e-6
        )
    assert tower.seen == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [text.split(":")[0] for text in caplog.messages] == ["the GPU ran out of memory"] * 2
    assert "2 images at a time" in caplog.messages[-1]
    assert "--batch-size" in caplog.messages[-1]


def test_a_model_that_does_not_fit_with_one_image_is_an_error() -> None:
    encode = Encode(model_of(Tower(most=0)), precision="fp32", device="cpu", batch_size=BATCH)
    with pytest.raises(torch.OutOfMemoryError):
        encode(batch_of(1))


def test_compiled_code_gives_the_same_and_is_kept_in_clipbatchs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    counters.clear()
    encode = Encode(model_of(Tower(BATCH)), precision="bf16", device="cpu", batch_size=BATCH, compiles=True)
    batches = [batch_of(seed) for seed in range(3)]
    for batch in batches:
        made = torch.as_tensor(encode(batch).image_BD)
        torch.testing.assert_close(made.double(), reference(Tower(BATCH), batch), rtol=0, atol=1e-2)
    assert counters["stats"]["unique_graphs"] == 1
    assert any((tmp_path / "clipbatch" / "inductor").rglob("*.so"))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """open_clip's vision transformer of random weights, small."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    tower: nn.Module = VisionTransformer(32, 8, 64, 2, 2, 4.0, output_dim=48)
    return tower.eval().requires_grad_(False)


def test_fp8_layers_are_near_the_layers_that_they_replace(vit: nn.Module) -> None:
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    loss = fp8.Loss(vit, "cpu")
    tower = copy.deepcopy(vit).to(torch.bfloat16)
    fp8.to_fp8(tower)
    exchanged = [name for name, layer in tower.named_modules() if isinstance(layer, fp8.Linear)]
    assert len(exchanged) == 2 * 4  # query, key and value; out; and the two layers of the perceptron, in each block
    loss.compare(images, tower(images.to(torch.bfloat16)))
    facts = loss.facts()
    assert facts["fp8_images"] == BATCH
    assert 0.99 < facts["fp8_cosine_worst"] <= facts["fp8_cosine_mean"] < 1
    assert loss.wanted
    for _ in range(fp8.COMPARED // BATCH):
        assert loss.wanted or loss.facts()["fp8_images"] >= fp8.COMPARED
        if loss.wanted:
            loss.compare(images, vit(images))
    assert not loss.wanted


@torch.inference_mode()
def test_fp8_does_not_replace_layers_whose_weights_are_read_directly() -> None:
    resnet = ModifiedResNet(layers=[1, 1, 1, 1], output_dim=32, heads=4, image_size=64, width=16)
    eva = nn.Sequential(EvaAttention(64, num_heads=4, qkv_fused=True, scale_norm=False))
    for tower, given in ((resnet, torch.rand(2, 3, 64, 64)), (eva, torch.rand(2, 5, 64))):
        wanted = tower.eval()(given)
        fp8.to_fp8(tower)
        assert torch.equal(tower(given), wanted)


def test_fp8_does_not_mix_images(vit: nn.Module) -> None:
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    tower = copy.deepcopy(vit).to(torch.bfloat16)
    fp8.to_fp8(tower)
    brighter = torch.cat([images[:1], 50 * images[1:]])
    torch.testing.assert_close(tower(brighter)[0], tower(images)[0], rtol=0, atol=1e-2)


def test_fp8_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(InputError, match=r"--precision fp8 needs a GPU.*use --precision fp16 or bf16"):
        fp8.check_chip("cpu")
