"""Heads as files: what is read, what is refused and why, and what `run.json` records of them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from clipbatch.config import head_files, heads
from clipbatch.config.head_files import load
from clipbatch.errors import InputError
from tests.support.heads import random_layers, save_head


def test_a_head_is_read_by_either_of_its_names_and_recorded_as_json(tmp_path: Path) -> None:
    numbers = random_layers(np.random.default_rng(0), [8, 4, 3])
    path = save_head(tmp_path / "a.safetensors", numbers, ["a", "b", 'c"é\x7f'], result="classes", activation="relu")
    (first,), (second,) = load([f"animal={path}"]), load([f"animal={path.with_suffix('.toml')}"])
    assert first.head == second.head
    assert first.head.layers == (8, 4, 3)
    for (weight, bias), (ours, own) in zip(numbers, first.numbers, strict=True):
        assert np.array_equal(weight, ours)
        assert np.array_equal(bias, own)
    recorded = json.loads(json.dumps(heads.identity([first.head]), sort_keys=True))
    assert heads.from_identity(recorded) == (first.head,)
    (tmp_path / "b.toml").write_text(head_files.toml_text(first.head))
    save_file(head_files.tensors_of(first), tmp_path / "b.safetensors")
    assert load([f"animal={tmp_path / 'b.toml'}"])[0].head == first.head


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ({"head": 2}, "head is 2, and this version of clipbatch knows head = 1"),
        ({"layers": [8]}, "layers is [8], not a list of two or more whole numbers"),
        ({"layers": [8, 5]}, "outputs is ['score'], not a list with a different name for each"),
        ({"layers": [9, 1]}, "layer 0 has weights of the shape (1, 8)"),
        ({"activation": "swish"}, "activation is 'swish', not one of none, relu"),
        ({"result": "classes"}, "two or more for classes"),
        ({"unit_length": None}, "it has no unit_length"),
        ({"weights_sha256": "abc"}, "not a digest of 64 hexadecimal digits"),
        ({"sha256": "0" * 64}, "its numbers are not those that its TOML file was written for"),
        ({"pretraned": "openai"}, "it has 'pretraned', which no head has. Did you mean pretrained?"),
    ],
)
def test_what_a_toml_file_must_not_say_is_named_with_its_file(tmp_path: Path, toml: dict[str, Any], said: str) -> None:
    path = save_head(tmp_path / "a.safetensors", random_layers(np.random.default_rng(0), [8, 1]), **toml)
    with pytest.raises(InputError) as refused:
        load([f"a={path}"])
    assert said in str(refused.value)
    assert str(tmp_path / "a.") in str(refused.value)


@pytest.mark.parametrize("kind", ["pickle", "torch", "nan", "infinite as float32", "integers", "text", "more"])
def test_pickles_and_numbers_that_are_not_finite_are_refused(tmp_path: Path, kind: str) -> None:
    (weight, bias), *_ = random_layers(np.random.default_rng(0), [8, 1])
    path = save_head(tmp_path / "a.safetensors", [(weight, bias)])
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": weight}))
    elif kind == "torch":
        torch.save({"weight": torch.from_numpy(weight)}, path)
    elif kind == "text":
        path.write_text("not a head")
    else:
        wrong = {"nan": weight * np.nan, "infinite as float32": weight.astype(np.float64) * 1e300}
        tensors = {"layers.0.weight": wrong.get(kind, weight), "layers.0.bias": bias}
        if kind == "integers":
            tensors["layers.0.weight"] = np.ones((1, 8), np.int32)
        if kind == "more":
            tensors["scale"] = bias
        save_file(tensors, path)
    with pytest.raises(InputError) as refused:
        load([f"a={path}"])
    said = {
        "pickle": "a pickle can run any program",
        "torch": "clipbatch import-head makes a head",
        "text": "not a safe",
    }
    said |= {"integers": "holds int32", "more": "it has a tensor 'scale'"}
    assert said.get(kind, "values that are not finite") in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("a.safetensors", "write NAME=FILE"),
        ("a-b={path}", "write NAME=FILE"),
        ("b=gone.safetensors", "cannot read the head gone.safetensors"),
        ("b=model.pth", "clipbatch import-head makes one of others"),
        ("A={path}", "'A' is there twice"),
    ],
)
def test_names_and_files_that_are_no_heads_are_refused(tmp_path: Path, spec: str, said: str) -> None:
    path = save_head(tmp_path / "a.safetensors", random_layers(np.random.default_rng(0), [8, 1]))
    with pytest.raises(InputError, match=said):
        load([f"a={path}", spec.format(path=path)])


@pytest.mark.parametrize(
    ("model", "pretrained", "is_for"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-L-14-quickgelu", "openai", True),  # the same weights; the first worker looks at QuickGELU itself
        ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-B-32", "openai", False),
        ("ViT-L-14", "/weights/ViT-L-14.safetensors", None),
        ("hf-hub:timm/vit_large_patch14_clip_224.openai", None, None),
    ],
)
def test_names_tell_whether_a_head_is_for_a_model(
    tmp_path: Path, model: str, pretrained: str | None, is_for: bool | None
) -> None:
    numbers = random_layers(np.random.default_rng(0), [768, 1])
    path = save_head(tmp_path / "a.safetensors", numbers, model="ViT-L-14", pretrained="openai")
    (file,) = load([f"a={path}"])
    assert heads.is_for(file.head, model, pretrained) is is_for
    if is_for is False:
        with pytest.raises(InputError, match="--head a=.*--head-anyway" if model == "ViT-L-14" else "a=.*512"):
            heads.check([file.head], model, pretrained, anyway=False)
    if model == "ViT-L-14":
        heads.check([file.head], model, pretrained, anyway=True)
    raw = heads.of_json({**heads.to_json(file.head), "unit_length": False})
    with pytest.raises(InputError, match="scales embeddings to unit length"):
        heads.check([raw], "ViT-L-14", "openai", anyway=False)
