"""The encoder on a GPU: graphs, compiled code, fp8, and what happens when memory really runs out."""

import copy
from pathlib import Path

import open_clip
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipbatch.config import ModelSettings
from clipbatch.errors import InputError
from clipbatch.stages.cuda import mark, stream_on
from clipbatch.stages.encode import Encode, Model, fp8, load
from clipbatch.stages.encode.compile import Graph
from clipbatch.types import Decoded, ItemBatch, PixelBatch

BATCH = 64
OK = Decoded(width=1, height=1, decoder="dali")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A ViT-B-32 of random weights; to be copied before it is given to an encoder, which changes it."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "ViT-B-32.safetensors"
    module = open_clip.create_model("ViT-B-32")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, weights)
    return load(ModelSettings(model="ViT-B-32", pretrained=str(weights)))


def encoder(model: Model, precision: str, batch: int = BATCH, **more: object) -> Encode:
    return Encode(copy.deepcopy(model), precision=precision, device="cuda:0", batch_size=batch, **more)  # type: ignore[arg-type]


def batch_of(seed: int, size: int = BATCH) -> PixelBatch:
    generator = torch.Generator("cuda").manual_seed(seed)
    coarse = torch.randint(0, 256, (size, 3, 14, 14), generator=generator, device="cuda").float()
    pixels = torch.nn.functional.interpolate(coarse, size=224, mode="bicubic").clamp(0, 255).to(torch.uint8)
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
    pixels_BCHW = pixels.contiguous(memory_format=torch.channels_last)
    ready = mark(torch.cuda.current_stream())
    return PixelBatch(source=source, outcomes=(OK,) * size, pixels_BCHW=pixels_BCHW, ready=ready)


def embedded(encode: Encode, batch: PixelBatch) -> Tensor:
    return torch.as_tensor(encode(batch).image_BD)


def test_fp16_is_near_fp32_on_the_cpu(model: Model) -> None:
    batch = batch_of(1)
    exact = copy.deepcopy(model)
    cpu = Encode(exact, precision="fp32", device="cpu", batch_size=BATCH)
    reference = cpu.embed(batch.pixels_BCHW.cpu())
    cosine = torch.nn.functional.cosine_similarity(embedded(encoder(model, "fp16"), batch).cpu(), reference)
    assert cosine.mean() >= 0.999
    assert cosine.min() >= 0.99


def test_a_graph_replays_the_same_bits(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    encode = encoder(model, "fp16")
    assert isinstance(encode._whole, Graph)
    assert caplog.messages == []
    stream = encode._stream
    for seed in range(4):
        batch = batch_of(seed)
        with torch.cuda.stream(stream), torch.inference_mode():
            plain = encode.embed(batch.pixels_BCHW)
        assert torch.equal(embedded(encode, batch), plain)


def test_attention_is_fused(model: Model) -> None:
    encode = encoder(model, "fp16")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        encode.embed(batch_of(1).pixels_BCHW)
    names = {event.name for event in found.events()}
    assert "aten::scaled_dot_product_attention" in names
    assert "aten::_softmax" not in names


def test_many_batches_at_once_are_what_they_are_one_by_one(model: Model) -> None:
    from clipbatch.stages.flow import Flow, Stage

    encode = encoder(model, "fp16")
    batches = [batch_of(seed) for seed in range(40)]
    alone = [embedded(encode, batch) for batch in batches]
    torch.cuda.synchronize()
    together = Flow(batches, [Stage(name="encode", work=encode, threads=encode.threads)])
    assert all(torch.equal(torch.as_tensor(made.image_BD), one) for made, one in zip(together, alone, strict=True))


def test_compiled_code_is_near_and_repeats_itself(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    batch = batch_of(1)
    first, second = (embedded(encoder(model, "fp16", compiles=True), batch) for _ in range(2))
    assert torch.equal(first, second)
    cosine = torch.nn.functional.cosine_similarity(first, embedded(encoder(model, "fp16"), batch))
    assert cosine.min() >= 0.9999


def test_fp8_is_near_where_the_chip_has_it_and_refused_where_not(model: Model) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        with pytest.raises(InputError, match="--precision fp8 needs"):
            encoder(model, "fp8")
        return
    encode = encoder(model, "fp8")
    for seed in range(fp8.COMPARED // BATCH):
        encode(batch_of(seed))
    facts = encode.facts()
    assert facts["fp8_images"] == fp8.COMPARED
    assert facts["fp8_cosine_mean"] >= 0.98


def test_a_batch_that_does_not_fit_is_encoded_in_pieces(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    batch = batch_of(1, 2048)
    expected = embedded(encoder(model, "fp16", batch=2048), batch)
    encode = encoder(model, "fp16", batch=2048)
    encode._whole = encode.embed  # the graph has its memory already
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 2**29) / total)
    try:
        made = embedded(encode, batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("ran out of memory" in text for text in caplog.messages)
    assert 1 <= encode.facts()["encoded_at_once"] < 2048
    torch.testing.assert_close(made, expected, rtol=0, atol=5e-3)


def test_work_that_cannot_be_recorded_is_done_without_a_graph(model: Model) -> None:
    stream = stream_on("cuda:0")
    assert stream
    given = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        Graph(lambda some: some * float(some.sum()), given, stream)
    assert float((given * 2).sum()) == 8  # the device goes on
