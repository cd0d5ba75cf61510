"""A GPU that fails because of an image says so only later: the right image is blamed, and the run goes on."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import DEMO, Cli, rows
from tests.support.injected import injected

FILES = 40
LATE = """
import dataclasses
decode_now = Decode.__call__
failed = []

class Ready:
    def __init__(self, bad): self.bad = bad
    def synchronize(self):
        if self.bad: fail()

def fail():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def decode_late(self, batch):
    if failed: fail()
    pixels = decode_now(self, batch)
    bad = any(b"culprit" in getattr(content, "data", b"") for content in batch.slots)
    failed.extend([True] if bad else [])
    return dataclasses.replace(pixels, ready=Ready(bad))

Decode.__call__ = decode_late
"""
# What waits for the pixels fails as well, so that the batch is never finished.
WAITING = """
encode_now = Encode.__call__

def encode_or_fail(self, batch):
    if batch.ready: batch.ready.synchronize()
    return encode_now(self, batch)

Encode.__call__ = encode_or_fail
"""


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, of which number 17 makes a GPU fail."""
    folder = tmp_path_factory.mktemp("late")
    files = sorted(photos.glob("*.jpg"))
    for number in range(FILES):
        shutil.copy(files[number % len(files)], folder / f"{number:02}.jpg")
    (folder / "17.jpg").write_bytes((folder / "17.jpg").read_bytes() + b"culprit\xff\xd9")
    return folder


@pytest.mark.parametrize("decoder", ["torchvision", "dali"])
def test_an_image_at_which_a_gpu_fails_later_is_given_up_and_not_its_neighbour(
    cli: Cli, warm: Cli, folder: Path, tmp_path: Path, decoder: str
) -> None:
    run = ("run", folder, *DEMO, "--decoder", decoder, "--shard-size", 16, "--batch-size", 4, "--out")
    env = injected(
        tmp_path / "fault", {"clipbatch.stages.decode.stage": LATE, "clipbatch.stages.encode.stage": WAITING}
    )
    said = cli(*run, tmp_path / "out", env=env).stderr
    assert "CUDA error: an illegal memory access was encountered; restarting it" in said
    table = rows(tmp_path / "out")
    bad = [(Path(row["uri"]).name, row["status"], row["error"]) for row in table.to_pylist() if row["status"] != "ok"]
    what = "decoding it ends a process: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert bad == [("17.jpg", "crashed", what)]
    warm(*run, tmp_path / "plain")
    plain = rows(tmp_path / "plain")
    others = [number for number in range(FILES) if number != 17]
    assert table.take(others) == plain.take(others)
    assert plain["status"].to_pylist() == ["ok"] * FILES
