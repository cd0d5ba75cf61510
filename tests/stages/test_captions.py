"""The captions of a shard ahead of its images: each once, in windows, for whichever batches come."""

import contextlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipbatch.config import ModelSettings
from clipbatch.errors import InputError
from clipbatch.rundir.captions import CaptionColumn
from clipbatch.stages.captions import Captions
from clipbatch.stages.encode import load
from clipbatch.stages.encode.text_tower import TextTower
from clipbatch.types import Decoded, EmbeddedBatch, ItemBatch, Reject

ROWS, BATCH, START = 40, 8, 1000
TEXTS = [None if row % 9 == 4 else f"a photo of {'cat ' * (row % 7)}" for row in range(ROWS)]


def _batch(table: pa.Table, image_BD: torch.Tensor, first: int, *, last: bool) -> EmbeddedBatch:
    rows = table.slice(first, BATCH)
    source = ItemBatch(shard=3, start=START + first, items=(), rows=rows, last=last, whole=False)
    decoded = (Decoded(width=1, height=1, decoder="pil"),) * rows.num_rows
    return EmbeddedBatch(source=source, outcomes=decoded, image_BD=image_BD[first : first + BATCH])


def test_equal_captions_are_encoded_once_whichever_rows_a_task_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipbatch.stages.captions._CPU_WINDOW", 16)
    model = load(ModelSettings(model="clipbatch-demo", pretrained="embedded"))
    tower, seen = TextTower(model, precision="fp32", device="cpu"), list[str]()
    tokenize = tower.tokenize
    monkeypatch.setattr(tower, "tokenize", lambda texts: (seen.extend(texts), tokenize(texts))[1])
    image_BD = torch.nn.functional.normalize(torch.randn(ROWS, 96, generator=torch.manual_seed(1)), dim=-1)
    table = pa.table({"text": TEXTS})

    def batch(first: int, *, last: bool) -> EmbeddedBatch:
        return _batch(table, image_BD, first, last=last)

    column = CaptionColumn(name="text", field=None)
    with contextlib.closing(Captions(tower, column, device="cpu", embeddings=False)) as captions:
        whole = [batch(first, last=first + BATCH == ROWS) for first in range(0, ROWS, BATCH)]
        some = [batch(ROWS - BATCH, last=True)]  # a second task that names one batch of the same shard
        for task in (whole, some):
            captions.begin(3, table, START)
            for each in task:
                captions.prepare(each.source)
        compared = [captions.compare(each).captions for each in (*whole, *some)]
    assert sorted(seen) == sorted([*{text for text in TEXTS if text}] * 2)  # once for each task
    assert all(one is not None for one in compared)
    similarity = np.concatenate([one.similarity_B for one in compared if one])
    tokens = np.concatenate([one.tokens_B for one in compared if one])
    assert similarity[:ROWS][-BATCH:].tobytes() == similarity[ROWS:].tobytes()
    assert (tokens[:ROWS] < 0).tolist() == [text is None for text in TEXTS]
    with torch.inference_mode():
        text_BD = model.module.encode_text(model.tokenizer([text or "" for text in TEXTS]), normalize=True)
    expected = (image_BD * text_BD).sum(dim=-1).numpy()
    has_text = tokens[:ROWS] >= 0
    np.testing.assert_allclose(similarity[:ROWS][has_text], expected[has_text], atol=1e-6)


def test_a_caption_for_which_the_model_gives_no_numbers_stops_the_run_and_names_its_row() -> None:
    """Not cosine 0. A tower in fp16 overflows for some captions alone; a weight that is too large does the same."""
    model = load(ModelSettings(model="clipbatch-demo", pretrained="embedded"))
    _, zebra, *_ = model.tokenizer(["zebra"])[0].tolist()
    tower = TextTower(model, precision="fp32", device="cpu")
    image_BD = torch.nn.functional.normalize(torch.randn(BATCH, 96, generator=torch.manual_seed(1)), dim=-1)
    table = pa.table({"text": ["a cat", None, "a zebra", "a dog", "a zebra", "a cat", "a cow", "a pig"]})
    good = _batch(table, image_BD, 0, last=True)
    is_bad = Reject(status="missing", error="no such file")
    others = tuple(
        is_bad if "zebra" in (text or "") else Decoded(width=1, height=1, decoder="pil")
        for text in table["text"].to_pylist()
    )
    weights = model.module.token_embedding.weight.data
    before = weights[zebra].clone()
    weights[zebra] = 3e38
    try:
        column = CaptionColumn(name="text", field=None)
        with contextlib.closing(Captions(tower, column, device="cpu", embeddings=False)) as captions:
            captions.begin(3, table, START)
            captions.prepare(good.source)
            compared = captions.compare(replace(good, outcomes=others)).captions
            captions.begin(3, table, START)
            captions.prepare(good.source)
            with pytest.raises(InputError, match=f"row {START + 2}: .* NaN .*: use --precision bf16 or fp32"):
                captions.compare(good)
    finally:
        weights[zebra] = before
    assert compared is not None
    assert np.isfinite(compared.similarity_B).tolist() == [text != "a zebra" for text in table["text"].to_pylist()]
