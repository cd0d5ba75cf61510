"""Which images fast decoders may get."""

import io

import numpy as np
import pytest
import torch
from torchvision.io import ImageReadMode, decode_image

from clipbatch.stages.decode.header import Header, inspect
from tests.support.corpus import photo


def jpeg(*, progressive: bool) -> tuple[bytes, bytes]:
    """A photo, and the header of its last scan with that scan, up to the end of the image."""
    file = io.BytesIO()
    photo(np.random.default_rng(3), 64, 48).save(file, "JPEG", progressive=progressive, subsampling=0)
    data = file.getvalue()
    return data, data[data.rindex(b"\xff\xda") : -2]


@pytest.mark.parametrize("count", [50, 150])
def test_a_jpeg_with_very_many_scans_is_accepted_only_if_one_scan_is_read(count: int) -> None:
    data, scan = jpeg(progressive=False)
    bomb = bytearray(data[:-2] + scan * count + data[-2:])
    assert inspect(bomb) == inspect(bytearray(data)) == Header(kind="jpeg", height=48, width=64, orientation=1)
    with pytest.raises(RuntimeError, match="more than one scan"):
        decode_image(torch.frombuffer(bomb, dtype=torch.uint8), ImageReadMode.RGB)
    data, scan = jpeg(progressive=True)
    trusted = inspect(bytearray(data[:-2] + scan * count + data[-2:]))
    assert (trusted is not None) == (count == 50)
