"""The table of models against open_clip itself: names, sizes, and operations counted anew."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import models
from clipbatch.errors import InputError

ENTRIES = {entry.name: entry for entry in models.entries()}


def _config(name: str) -> dict[str, Any]:
    import open_clip

    if name == models.DEMO:
        found: dict[str, Any] = json.loads(models.config_file(name).read_text())
        return found
    return dict(open_clip.get_model_config(name))


def test_the_list_has_every_model_of_open_clip() -> None:
    code = "import json, open_clip; print(json.dumps(open_clip.list_models()))"  # apart: here tests may add models
    theirs = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert set(models.names()) == {*theirs, models.DEMO}
    assert set(models.names()) == set(ENTRIES)
    assert len(ENTRIES) == len(models.entries()) > 100


def test_every_entry_has_the_input_size_of_open_clips_configuration_and_a_cost() -> None:
    for entry in models.entries():
        size = _config(entry.name)["vision_cfg"].get("image_size", 224)
        assert entry.image_size == (size if isinstance(size, int) else min(size)), entry.name
        assert entry.image_gflop > 0, entry.name
        assert entry.image_mparams > 0, entry.name


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "RN50", models.DEMO])
def test_the_cost_of_a_model_is_what_torch_counts_for_one_image(name: str) -> None:
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    open_clip.add_model_config(models.config_file(models.DEMO))
    size = ENTRIES[name].image_size
    with torch.device("meta"):
        visual = open_clip.create_model(name, device="meta", load_weights=False).visual.eval()
        with FlopCounterMode(display=False) as counter:
            visual(torch.empty(1, 3, size, size, device="meta"))
    assert ENTRIES[name].image_gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)
    assert ENTRIES[name].image_mparams == pytest.approx(sum(p.numel() for p in visual.parameters()) / 1e6, rel=0.01)


def test_a_configuration_file_costs_what_the_model_with_its_image_tower_does(tmp_path: Path) -> None:
    config = _config("ViT-L-14")
    (tmp_path / "ours.json").write_text(json.dumps({**config, "text_cfg": {**config["text_cfg"], "layers": 3}}))
    assert models.gflop(str(tmp_path / "ours.json")) == models.gflop("ViT-L-14")
    config["vision_cfg"]["layers"] = 7
    (tmp_path / "new.json").write_text(json.dumps(config))
    (tmp_path / "broken.json").write_text("[")
    assert {models.gflop(str(tmp_path / name)) for name in ("new.json", "broken.json")} == {models.gflop("unknown")}


def test_patches_of_a_quarter_of_the_size_cost_four_times_as_much() -> None:
    assert models.gflop("ViT-B-16") / models.gflop("ViT-B-32") == pytest.approx(4, rel=0.05)
    assert models.gflop(models.DEMO) < models.gflop("ViT-B-32") < models.gflop("ViT-L-14") < models.gflop("ViT-H-14")


def test_the_list_begins_with_the_cheapest_model() -> None:
    costs = [entry.image_gflop for entry in models.entries()]
    assert costs == sorted(costs)
    assert models.entries()[0].name == models.DEMO


def test_a_model_that_is_not_listed_gets_the_cost_of_a_mid_sized_one() -> None:
    assert models.gflop("hf-hub:org/unknown") == pytest.approx(models.gflop("ViT-B-16"), rel=0.05)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ViT-B-32", "ViT-B-32"),
        ("ViT-B/32", "ViT-B-32"),
        ("clipbatch-demo", "clipbatch-demo"),
        ("hf-hub:a/b", "hf-hub:a/b"),
    ],
)
def test_a_model_has_one_name_however_it_is_spelled(given: str, name: str) -> None:
    assert models.canonical(given) == models.openclip_name(name) == name


def test_a_configuration_file_goes_by_its_stem_and_is_refused_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    assert models.openclip_name(models.canonical(str(tmp_path / "mine.json"))) == "mine"
    assert models.config_file(str(tmp_path / "mine.json")) == tmp_path / "mine.json"
    with pytest.raises(InputError, match=r"none.json: there is no such config file"):
        models.canonical(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("ViT-B32", r"Did you mean .*ViT-B-32"),
        ("vit-b-32", r"Did you mean .*ViT-B-32"),
        ("RN50x46", r"Did you mean .*RN50x64"),
        ("clipbatch", r"Did you mean clipbatch-demo"),
        ("qqqq", r"lists all models\.$"),
        ("", r"lists all models\.$"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_names(given: str, near: str) -> None:
    with pytest.raises(InputError, match=near) as caught:
        models.canonical(given)
    assert f"--model {given!r} is not known: `clipbatch models`" in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_embedded_weights_are_a_file_that_is_there_and_the_default_tag_is_one_of_open_clips() -> None:
    import open_clip

    embedded = models.weights_file(models.default_weights(models.DEMO))
    assert embedded
    assert Path(embedded).stat().st_size > 10**6
    tag = models.default_weights("ViT-B-32")
    assert tag in open_clip.list_pretrained_tags_by_model("ViT-B-32")
    assert models.weights_file(tag) == tag
    assert models.default_weights("RN50") is None


@pytest.mark.parametrize("pretrained", [None, "openai", "laion2b_s34b_b79k", "hf-hub:org/name.safetensors"])
def test_weights_that_are_no_file_name_are_left_to_open_clip(pretrained: str | None) -> None:
    models.check_weights(pretrained)


@pytest.mark.parametrize("pretrained", ["none.pt", "none.safetensors", "none.bin", "sub/none"])
def test_weights_that_are_a_file_name_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"--pretrained {pretrained}: there is no such file"):
        models.check_weights(pretrained)
    Path(pretrained).parent.mkdir(exist_ok=True)
    Path(pretrained).touch()
    models.check_weights(pretrained)


def test_a_model_needs_transformers_if_its_text_tower_does_or_if_that_is_not_known(tmp_path: Path) -> None:
    import open_clip

    made_by_it = {name for name in models.names() if models.wants_transformers(name)}
    assert made_by_it == {
        name for name in open_clip.list_models() if "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]
    }
    assert "roberta-ViT-B-32" in made_by_it
    assert models.wants_transformers("hf-hub:org/name")
    assert models.wants_transformers(f"local-dir:{tmp_path}")
