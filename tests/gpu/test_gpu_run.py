"""Whole runs on a GPU: right, the same to the byte each time, and without needless waits for the device."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.types import Decoded, Encoded, ItemBatch, ReadBatch
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder
from tests.tools.test_parity import reference

GPU = ("--device", "cuda:0", "--batch-size", 64, "--shard-size", 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 files, some of them bad."""
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 600, seed=4)
    return folder


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "parts").iterdir())}


@pytest.mark.parametrize("size", [64, 224])
def test_pixels_are_open_clips(photos: Path, size: int) -> None:
    files = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    target = Target(height=size, width=size, resize_mode="shortest", interpolation="bicubic", fill=0)
    stage = Decode(DecodeSettings(decoder="dali"), target, batch_size=len(files), device="cuda:0")
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
    read = ReadBatch(source=source, slots=tuple(Encoded(data=bytearray(data)) for data in files))
    batches = [stage(read) for _ in range(3)]
    torch.cuda.synchronize()
    for batch in batches[1:]:
        assert torch.equal(batch.pixels_BCHW, batches[0].pixels_BCHW)
    made = batches[0].pixels_BCHW.cpu().numpy()
    names = [one.decoder for one in batches[0].outcomes if isinstance(one, Decoded)]
    assert names.count("dali") >= len(files) * 0.8
    off = [np.abs(one.astype(int) - reference(data, size)).mean() for one, data in zip(made, files, strict=True)]
    assert np.mean(off) <= 0.5


def test_labels_and_embeddings_are_the_cpus(cli: Cli, photos: Path, tmp_path: Path) -> None:
    cli("run", photos, *DEMO, "--precision", "fp16", "--embeddings", *GPU, "--out", tmp_path / "gpu")
    cpu = ("--device", "cpu", "--precision", "fp32", "--decoder", "pil", "--embeddings")
    cli("run", photos, *DEMO, *cpu, "--out", tmp_path / "cpu")
    ours, theirs = (rows(tmp_path / name) for name in ("gpu", "cpu"))
    a, b = (torch.tensor(np.array(table["embedding"].to_pylist(), np.float32)) for table in (ours, theirs))
    cosine = torch.nn.functional.cosine_similarity(a, b)
    assert cosine.mean() >= 0.999
    assert cosine.min() >= 0.99
    agreed = np.mean([x == y for x, y in zip(ours["label"].to_pylist(), theirs["label"].to_pylist(), strict=True)])
    assert agreed >= 0.99


@pytest.mark.parametrize(
    "more", [(), ("--compile", "on"), ("--cpu-share", 0.25), ("--hw-decoder-load", 0), ("--hw-decoder-load", 1)]
)
def test_the_same_run_gives_the_same_bytes(
    cli: Cli, folder: Path, tmp_path: Path, more: tuple[str | float, ...]
) -> None:
    for name in ("first", "second"):
        cli("run", folder, *DEMO, *GPU, *more, "--embeddings", "--out", tmp_path / name)
    assert parts(tmp_path / "first") == parts(tmp_path / "second")
    report = json.loads((tmp_path / "first" / "report.json").read_text())
    assert report["this_run"]["restarts"] == 0
    assert report["this_run"]["workers"][0]["gpu_used_mib"] > 0


def test_the_encoder_waits_for_events_alone(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join([str(path) for path in sorted(photos.glob("*.jpg"))] * 20))
    trace = tmp_path / "trace.json"
    cli("run", tmp_path / "many.txt", *DEMO, *GPU, "--profile", trace, "--out", tmp_path / "out")
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event for event in events if event.get("cat") == "kernel"]
    encodes = [event for event in events if event["name"] == "encode" and event.get("cat") == "user_annotation"]
    waits = [event for event in events if event["name"] in ("cudaStreamSynchronize", "cudaDeviceSynchronize")]
    inside = [
        wait["name"]
        for wait in waits
        for encode in encodes
        if wait["tid"] == encode["tid"] and encode["ts"] <= wait["ts"] < encode["ts"] + encode["dur"]
    ]
    assert inside == []  # a batch is waited for by an event alone
