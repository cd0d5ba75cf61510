"""The text tower for captions: open_clip's features and tokens, in blocks whose other rows do not matter."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from clipbatch.config import ModelSettings
from clipbatch.stages.encode import Model, load
from clipbatch.stages.encode.text_tower import MAX_CHARACTERS, TextTower
from tests.support.captions import ODD, sentences
from tests.support.families import FAMILIES, write_model

CAPTIONS = [text.decode() for text in dict.fromkeys([*sentences(60), *(t for t, why in ODD.items() if t and not why)])]
CAUSAL = ("EVA02-B-16", "ViT-B-32-quickgelu")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param, text_scale=4)
    return load(ModelSettings(model=f"local-dir:{folder}"))


def _embedded(tower: TextTower, texts: list[str], order: list[int]) -> dict[str, bytes]:
    """The features of `texts` by text, in blocks that are filled in `order`."""
    texts = [texts[number] for number in order]
    tokens, _ = tower.tokenize(texts)
    lengths, features = tower.row_lengths(tokens), dict[str, bytes]()
    for length in set(lengths):
        numbers = [number for number, its in enumerate(lengths) if its == length]
        for at in range(0, len(numbers), tower.rows):
            some = numbers[at : at + tower.rows]
            rows = tower.embed(tokens[some], length)
            features |= {texts[number]: row.tobytes() for number, row in zip(some, rows, strict=True)}
    return features


def test_features_are_open_clips_wherever_a_caption_is_in_a_block(model: Model) -> None:
    tower = TextTower(model, precision="fp32", device="cpu")
    features = _embedded(tower, CAPTIONS, list(range(len(CAPTIONS))))
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(model.name)(CAPTIONS)
        expected = model.module.encode_text(tokens, normalize=True).numpy()
    ours = np.stack([np.frombuffer(features[text], np.float32) for text in CAPTIONS])
    assert np.abs((ours * expected).sum(axis=1) - 1).max() < 1e-5
    assert np.abs(ours - expected).max() < 1e-5
    assert (expected @ expected.T)[~np.eye(len(CAPTIONS), dtype=bool)].min() < 0.9  # a swapped caption would show
    shuffled = np.random.default_rng(5).permutation(len(CAPTIONS)).tolist()
    assert _embedded(tower, CAPTIONS, shuffled) == features
    assert _embedded(tower, CAPTIONS[:3], [2, 0, 1]) == {text: features[text] for text in CAPTIONS[:3]}


def test_short_rows_are_for_causal_towers_alone(model: Model, request: pytest.FixtureRequest) -> None:
    tower = TextTower(model, precision="fp32", device="cpu")
    tokens, _ = tower.tokenize(CAPTIONS)
    lengths = set(tower.row_lengths(tokens))
    family = Path(model.name).name
    if any(family.startswith(name) for name in CAUSAL):
        assert len(lengths) > 3
        assert max(lengths) == tower.context_length
    else:
        assert lengths == {tower.context_length}


def test_tokens_are_counted_before_a_caption_is_cut_and_the_end_token_stays(model: Model) -> None:
    tower = TextTower(model, precision="fp32", device="cpu")
    blank = " \n" * 5_000  # which open_clip collapses, so that the words behind it are the caption
    texts = [*CAPTIONS, "a " * 70 + "cat", "a  cat\t" * 5_000, f"{blank}two{blank}cats"]
    tokens, counts = tower.tokenize(texts)
    cut = [*texts[:-2], ("a cat " * 5_000)[:MAX_CHARACTERS], "two cats"]
    whole = open_clip.get_tokenizer(model.name)(cut, context_length=10_000)
    end = getattr(model.tokenizer, "eot_token_id", None)
    end = model.tokenizer.tokenizer.eos_token_id if end is None else end
    for text, row, all_of_it, count in zip(texts, tokens, whole, counts, strict=True):
        assert count == int((all_of_it == end).nonzero()[-1]) + 1, text[:40]
        assert int((row == end).nonzero()[-1]) == min(count, len(row)) - 1, text[:40]
    assert counts[-2] > tower.context_length
    assert torch.equal(tokens[-1], open_clip.get_tokenizer(model.name)(texts[-1:])[0])


def test_each_thread_computes_alone() -> None:
    """Several threads encode captions at once, in a rescoring too, which makes no encoder of images."""
    torch.set_num_threads(2)
    TextTower(load(ModelSettings(model="clipbatch-demo", pretrained="embedded")), precision="fp32", device="cpu")
    assert torch.get_num_threads() == 1


def test_the_tokenizer_does_not_remember_words_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(ModelSettings(model="clipbatch-demo", pretrained="embedded"))
    tower = TextTower(model, precision="fp32", device="cpu")
    before, _ = tower.tokenize(["<start_of_text> a photo of a cat"])
    monkeypatch.setattr("clipbatch.stages.encode.text_tower._MAX_WORDS", 20)
    tower.tokenize([f"qx{number}zy" for number in range(100)])
    assert len(model.tokenizer.cache) <= 20
    after, _ = tower.tokenize(["<start_of_text> a photo of a cat"])
    assert torch.equal(before, after)
