"""Label features: computed once for a model and its prompts."""

from pathlib import Path

import numpy as np
import pytest

from clipbatch.config import from_flat
from clipbatch.stages.encode import load, text_features
from clipbatch.stages.encode.text import cache_folder

PROMPTS = [["a photo of a cat."], ["a photo of a dog.", "a drawing of a dog."]]


def test_features_are_kept_under_model_and_prompts_and_a_damaged_file_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load(from_flat({"model": "clipbatch-demo", "pretrained": "embedded"}).model)
    made = text_features(model, PROMPTS)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    (kept,) = cache_folder("text").iterdir()
    np.save(kept, other := -made)  # so that it shows where the next ones come from
    assert np.array_equal(text_features(model, PROMPTS), other)
    assert not np.array_equal(text_features(model, PROMPTS[::-1]), other)
    kept.write_bytes(kept.read_bytes()[:40])
    assert np.array_equal(text_features(model, PROMPTS), made)
    assert np.array_equal(np.load(kept), made)
