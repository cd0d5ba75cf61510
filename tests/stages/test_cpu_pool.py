"""The share of a batch that CPU cores decode while DALI decodes the rest: which images, and with which result."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode import Decode, choosing
from clipbatch.stages.decode.cpu_pool import goes_to_cpu
from clipbatch.stages.decode.geometry import Target
from clipbatch.types import Decoded, Encoded, ItemBatch, PixelBatch, ReadBatch, Reject

TARGET = Target(height=64, width=64, resize_mode="longest", interpolation="bicubic", fill=7)


def decoded(files: list[bytes], settings: DecodeSettings, start: int = 0) -> PixelBatch:
    stage = Decode(settings, TARGET, batch_size=len(files) + 2, device="cpu")
    source = ItemBatch(shard=0, start=start, items=(), rows=pa.table({}), last=True)
    return stage(ReadBatch(source=source, slots=tuple(Encoded(data=bytearray(data)) for data in files)))


def names(batch: PixelBatch) -> list[str]:
    return [one.decoder if isinstance(one, Decoded) else "" for one in batch.outcomes]


@pytest.fixture(scope="module")
def files(photos: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(photos.glob("*.jpg"))[:12]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_every_range_of_rows_has_the_share(share: float) -> None:
    for start in (0, 7, 10**9):
        taken = [goes_to_cpu(row, 1, share) for row in range(start, start + 1000)]
        assert abs(sum(taken) - 1000 * share) <= 1
        assert all(abs(sum(taken[at : at + 50]) - 50 * share) <= 1 for at in range(0, 1000, 50))


def test_rows_of_the_share_equal_torchvisions_and_the_others_dalis(files: list[bytes]) -> None:
    by = {name: decoded(files, DecodeSettings(decoder=name)) for name in ("dali", "torchvision")}  # type: ignore[arg-type]
    start = 10
    shared = decoded(files, DecodeSettings(decoder="dali", cpu_share=0.25), start)
    expected = ["torchvision" if goes_to_cpu(start + slot, 1, 0.25) else "dali" for slot in range(len(files))]
    assert names(shared) == expected
    assert 0 < expected.count("torchvision") < len(files)
    for slot, name in enumerate(expected):
        torch.testing.assert_close(shared.pixels_BCHW[slot], by[name].pixels_BCHW[slot], rtol=0, atol=0)
    assert (shared.pixels_BCHW[len(files) :] == 7).all()


def test_a_bad_image_in_the_share_is_judged_by_pillow_and_its_neighbours_stay(files: list[bytes]) -> None:
    whole = decoded(files, DecodeSettings(decoder="dali", cpu_share=1.0))
    broken = bytearray(files[3])
    tables = broken.rindex(b"\xff\xc4") + 5  # how many Huffman codes there are of each length
    broken[tables : tables + 16] = b"\xff" * 16
    made = decoded([*files[:3], bytes(broken), *files[4:]], DecodeSettings(decoder="dali", cpu_share=1.0))
    assert isinstance(made.outcomes[3], Reject) or made.outcomes[3].decoder == "pil"  # type: ignore[union-attr]
    others = [slot for slot in range(len(files)) if slot != 3]
    assert torch.equal(made.pixels_BCHW[others], whole.pixels_BCHW[others])


def test_giants_do_not_go_to_dali(files: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [one.width * one.height for one in decoded(files, DecodeSettings()).outcomes if isinstance(one, Decoded)]
    limit = int(np.median(sizes))
    monkeypatch.setattr(choosing, "GIANT_PIXELS", limit)
    assert names(decoded(files, DecodeSettings(decoder="dali"))) == [
        "torchvision" if size > limit else "dali" for size in sizes
    ]
