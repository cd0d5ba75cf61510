"""Large JPEGs decoded at a smaller scale: which ones, by which decoder, and how close the result is."""

import io
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipbatch.config import DecodeSettings
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.cpu_decoders import reduction
from clipbatch.stages.decode.geometry import Target, geometry_of
from clipbatch.types import Decoded, Encoded, ItemBatch, PixelBatch, ReadBatch, Reject
from tests.support.corpus import photo

SIZE = 64


def jpeg(width: int, height: int, *, kind: str = "JPEG", mode: str = "RGB", orientation: int = 1) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo(np.random.default_rng(width + height), width, height).convert(mode).save(file, kind, quality=92, exif=exif)
    return file.getvalue()


def decoded(
    files: list[bytes], decoder: Literal["torchvision", "dali"], scale: Literal["full", "reduced"]
) -> PixelBatch:
    target = Target(height=SIZE, width=SIZE, resize_mode="shortest", interpolation="bicubic", fill=0)
    settings = DecodeSettings(decoder=decoder, jpeg_scale=scale)
    stage = Decode(settings, target, batch_size=len(files), device="cpu", threads=1)
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)
    return stage(ReadBatch(source=source, slots=tuple(Encoded(data=bytearray(data)) for data in files)))


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(255, 900, 1), (256, 300, 2), (512, 512, 4), (1024, 1500, 8), (9000, 9000, 8)]
)
def test_at_least_twice_the_models_pixels_are_decoded_on_each_axis(height: int, width: int, expected: int) -> None:
    target = Target(height=SIZE, width=SIZE, resize_mode="shortest", interpolation="bicubic", fill=0)
    assert reduction(geometry_of(height, width, 1, target)) == expected


@pytest.mark.parametrize("decoder", ["torchvision", "dali"])
def test_large_jpegs_stay_close_and_all_others_stay_equal(decoder: Literal["torchvision", "dali"]) -> None:
    big = [jpeg(1201, 903), jpeg(641, 1100, orientation=6), jpeg(700, 533, mode="L"), jpeg(530, 801, orientation=3)]
    small = [jpeg(240, 200), jpeg(900, 700, kind="WEBP"), jpeg(900, 700, kind="PNG")]
    full, reduced = (decoded(big + small, decoder, scale) for scale in ("full", "reduced"))  # type: ignore[arg-type]
    names = [one.decoder for one in reduced.outcomes if isinstance(one, Decoded)]
    assert names[: len(big) + 1] == ["pil"] * len(big) + [decoder]
    sizes = [
        [(one.width, one.height) for one in batch.outcomes if isinstance(one, Decoded)] for batch in (full, reduced)
    ]
    assert sizes[0] == sizes[1]
    off = (full.pixels_BCHW.int() - reduced.pixels_BCHW.int()).abs().float().mean(dim=(1, 2, 3)).tolist()
    assert max(off[: len(big)]) <= 1.0
    assert min(off[: len(big)]) > 0
    assert off[len(big) :] == [0.0] * len(small)


def test_a_damaged_big_jpeg_gets_the_status_that_it_gets_at_full_size() -> None:
    data = jpeg(1201, 903)
    tables = data.rindex(b"\xff\xc4") + 5  # how many Huffman codes there are of each length
    files = [data[: len(data) // 2], data[:tables] + b"\xff" * 16 + data[tables + 16 :], data]
    full, reduced = (decoded(files, "torchvision", scale) for scale in ("full", "reduced"))  # type: ignore[arg-type]
    statuses = [one.status for one in reduced.outcomes if isinstance(one, Reject)]
    assert statuses == ["truncated", "corrupt"]
    assert full.outcomes[:2] == reduced.outcomes[:2]
    assert isinstance(reduced.outcomes[2], Decoded)
