"""DALI's CPU back end: its memory, and what happens if memory does not suffice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipbatch.stages.decode.dali import DaliDecoder, _Pipeline
from clipbatch.stages.decode.geometry import Target, geometry_of
from clipbatch.stages.decode.header import inspect
from clipbatch.stages.decode.pixels import DecodeJob, blank

MAPPED = """
import ctypes
from clipbatch.stages.decode.dali import DaliDecoder

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, Mallinfo
libc.free.argtypes = [ctypes.c_void_p]
DaliDecoder(batch_size=1, interpolation="bicubic", device_id=None, threads=1, engines=False)
libc.free(libc.malloc(24 * 2**20))  # glibc takes this for a sign that blocks up to this size had better stay
before = libc.mallinfo2().hblkhd
block = libc.malloc(16 * 2**20)
print(libc.mallinfo2().hblkhd - before)
libc.free(block)
print(libc.mallinfo2().hblkhd - before)
"""


def test_the_memory_of_an_image_goes_back_to_the_system_when_it_is_freed() -> None:
    mapped, left = map(int, subprocess.check_output([sys.executable, "-c", MAPPED], timeout=120, text=True).split())
    assert (mapped >= 16 * 2**20, left) == (True, 0)


class _Cramped(DaliDecoder):
    """Fails as on a GPU whose memory is full where more than three images are decoded at once."""

    def _place(self, pixels_BCHW: Tensor, pipeline: _Pipeline, jobs: list[DecodeJob]) -> None:
        if len(jobs) > 3:
            pipeline.drop()
            raise RuntimeError("Critical error in pipeline:\nCan't allocate 3221225472 bytes on device 0.")
        super()._place(pixels_BCHW, pipeline, jobs)


def test_batches_that_do_not_fit_into_memory_are_decoded_in_halves(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target(height=64, width=64, resize_mode="shortest", interpolation="bicubic", fill=0)
    jobs = []
    for slot, path in enumerate(sorted(photos.glob("*.jpg"))[:10]):
        header = inspect(data := bytearray(path.read_bytes()))
        assert header
        jobs.append(DecodeJob(slot=slot, data=data, geometry=geometry_of(header.height, header.width, 1, target)))
    made = []
    for kind in (DaliDecoder, _Cramped):
        decoder = kind(batch_size=10, interpolation="bicubic", device_id=None, threads=1, engines=True)
        pixels_BCHW = blank(10, 64, 64, 0, "cpu")
        assert decoder.fill(pixels_BCHW, jobs) == []
        made.append(pixels_BCHW)
    assert torch.equal(*made)
    assert set(caplog.messages) == {
        "DALI ran out of memory: decoding such batches in pieces; a smaller --batch-size is faster"
    }
