"""Label features are computed once for a model and its prompts."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from clipbatch.config import from_flat
from clipbatch.stages.encode import load, text_features
from clipbatch.stages.encode.model import load_tokenizer
from clipbatch.stages.encode.prompts import cut_prompts
from clipbatch.stages.encode.text import cache_folder

PROMPTS = [["a photo of a cat."], ["a photo of a dog.", "a drawing of a dog."]]


def test_features_are_cached_by_model_and_prompts_and_a_damaged_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load(from_flat({"model": "clipbatch-demo", "pretrained": "embedded"}).model)
    made = text_features(model, PROMPTS)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    (kept,) = cache_folder("text").iterdir()
    whole, other = kept.read_bytes(), -made  # so that it shows where the next ones come from
    np.save(buffer := io.BytesIO(), other)
    kept.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    assert np.array_equal(text_features(model, PROMPTS), other)
    assert not np.array_equal(text_features(model, PROMPTS[::-1]), other)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:40], whole[:-1], bytes(flipped)):
        kept.write_bytes(damaged)
        caplog.clear()
        assert np.array_equal(text_features(model, PROMPTS), made)
        assert [text.partition(" cached in ")[0] for text in caplog.messages] == ["the label features"]
        assert kept.read_bytes() == whole


@pytest.mark.parametrize("model", ["clipbatch-demo", "ViT-B-32", "ViT-L-14", "RN50"])
def test_a_prompt_that_is_too_long_is_noticed_and_keeps_its_end_token(model: str) -> None:
    tokenizer = load_tokenizer(from_flat({"model": model}).model)
    fits, just, long = (f"a photo of {'cat ' * count}".strip() for count in (10, 72, 73))  # and a start and an end: 77
    (cut,) = cut_prompts(tokenizer, [fits, just, long])
    assert (cut.text, cut.context_length) == (long, 77)
    assert cut.kept.split() == just.split()
    for text in (fits, just, long):
        tokens = tokenizer([text])[0].tolist()
        assert tokenizer.eot_token_id in tokens
    assert tokens[-1] == tokenizer.eot_token_id
