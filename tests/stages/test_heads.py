"""What heads compute, against torch's own modules, and which model they take."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from clipbatch.config import ModelSettings, head_files, heads
from clipbatch.config.heads import HeadFile
from clipbatch.errors import InputError
from clipbatch.stages.encode.model import quick_gelu
from clipbatch.stages.heads import Heads, check_model
from tests.conftest import FACTS
from tests.support.heads import random_layers

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
RESULTS = {"values": nn.Identity(), "probabilities": nn.Sigmoid(), "classes": nn.Softmax(dim=-1)}
TOWER = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def _file(numbers: Any, **more: object) -> HeadFile:
    outputs = [str(number) for number in range(len(numbers[-1][1]))]
    sizes = [numbers[0][0].shape[1], *(len(bias) for _, bias in numbers)]
    values = {"name": "a", "layers": sizes, "activation": "none", "result": "values", "outputs": outputs}
    values |= {"unit_length": True, "model": "ViT-B-32", "sha256": heads.digest(numbers), **more}
    return HeadFile(head=heads.of_json(values), numbers=numbers)


def _images(count: int, width: int) -> torch.Tensor:
    values = np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)
    return nn.functional.normalize(torch.from_numpy(values), dim=-1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("result", RESULTS)
def test_outputs_are_those_of_torchs_modules(activation: str, result: str) -> None:
    numbers = tuple(random_layers(np.random.default_rng(1), [64, 48, 5]))
    modules: list[nn.Module] = []
    for weight, bias in numbers:
        linear = nn.Linear(weight.shape[1], len(bias))
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        modules += [linear, ACTIVATIONS[activation]()]
    image_BD = _images(70, 64)
    expected = nn.Sequential(*modules[:-1], RESULTS[result]).double()(image_BD.double()).detach()
    found = Heads([_file(numbers, activation=activation, result=result)], "cpu")(image_BD)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def test_a_row_has_the_same_bits_whatever_stands_beside_it_and_however_many_threads_there_are() -> None:
    rng, threads = np.random.default_rng(2), torch.get_num_threads()
    files = [_file(tuple(random_layers(rng, sizes))) for sizes in ([512, 1], [512, 1024, 64, 1], [512, 10])]
    both, image_BD = Heads(files, "cpu"), _images(200, 512)
    try:
        torch.set_num_threads(1)
        whole = both(image_BD)
        for rows in (range(1), range(31), range(33), range(64, 200), range(5, 6), range(199, -1, -1)):
            assert torch.equal(both(image_BD[list(rows)]), whole[list(rows)])
        torch.set_num_threads(4)
        assert torch.equal(both(image_BD), whole)
        assert torch.equal(both(image_BD.half()), both(image_BD.half().float()))
    finally:
        torch.set_num_threads(threads)


def test_a_head_that_overflows_is_named_with_the_first_row() -> None:
    huge = tuple((np.full((1, 8), 1e30, np.float32), np.zeros(1, np.float32)) for _ in range(2))
    numbers = (huge[0], (np.full((1, 1), 1e30, np.float32), np.zeros(1, np.float32)))
    both = Heads([_file(tuple(random_layers(np.random.default_rng(3), [8, 2]))), _file(numbers, name="b")], "cpu")
    with pytest.raises(InputError, match=r"^row 71: --head b=.*NaN or infinite"):
        both.check(both(torch.tensor([0.0, 1.0, 1.0])[:, None].expand(3, 8)), [70, 71, 72])


@pytest.mark.parametrize("uses", [True, False])
def test_quick_gelu_is_what_the_loaded_model_has(tmp_path: Path, uses: bool) -> None:
    path = tmp_path / f"tiny-{uses}.json"
    path.write_text(json.dumps({**TOWER, "quick_gelu": uses}))
    assert quick_gelu(ModelSettings(model=str(path))) is uses
    open_clip.add_model_config(path)
    module = open_clip.create_model(path.stem)
    assert any(type(each).__name__ == "QuickGELU" for each in module.visual.modules()) is uses


def test_quick_gelu_follows_the_name_or_the_tag() -> None:
    for model, pretrained, uses in (
        ("ViT-L-14", "openai", True),
        ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-L-14", "/weights.pt", False),
        ("ViT-L-14-quickgelu", "/weights.pt", True),
        ("local-dir:/gone", None, None),
    ):
        assert quick_gelu(ModelSettings(model=model, pretrained=pretrained)) is uses, (model, pretrained)


def test_a_head_of_another_model_is_refused_unless_it_is_wanted_anyway(caplog: pytest.LogCaptureFixture) -> None:
    numbers = tuple(random_layers(np.random.default_rng(4), [8, 1]))
    facts = {**FACTS, "weights_sha256": "ab" * 32}
    openai = ModelSettings(model="ViT-L-14", pretrained="openai")
    plain = ModelSettings(model="ViT-L-14", pretrained="/weights.pt")
    given = {"model": "ViT-L-14", "pretrained": "openai"}
    right = _file(numbers, **given, quick_gelu=True, weights_sha256="ab" * 32).head
    unknown = _file(numbers, **given).head
    check_model([right, unknown], openai, facts, 8, anyway=False)  # type: ignore[arg-type]
    wrong = _file(numbers, **given, quick_gelu=True, weights_sha256="cd" * 32).head
    for head, settings, said in (
        (right, plain, "ViT-L-14 with QuickGELU, and ViT-L-14 runs without it here"),
        (wrong, openai, "ViT-L-14 with other weights .sha256 cdcd"),
        (unknown, plain, "does not say for which weights, so ViT-L-14 may be another: use another model"),
    ):
        with pytest.raises(InputError, match=said):
            check_model([head], settings, facts, 8, anyway=False)  # type: ignore[arg-type]
        check_model([head], settings, facts, 8, anyway=True)  # type: ignore[arg-type]
    assert not caplog.messages
    check_model([right], ModelSettings(model="local-dir:/gone"), facts, 8, anyway=False)  # type: ignore[arg-type]
    assert "the configuration of local-dir:/gone is not on this machine: whether it uses QuickGELU" in caplog.text
    with pytest.raises(InputError, match="takes embeddings of 8 numbers, and those of ViT-L-14 have 768"):
        check_model([right], openai, facts, 768, anyway=True)  # type: ignore[arg-type]


def test_a_bias_may_be_left_out(tmp_path: Path) -> None:
    weight = np.ones((2, 3), np.float32)
    ((_, bias),) = head_files.layers_of([3, 2], {"layers.0.weight": weight})
    assert bias.tolist() == [0, 0]
