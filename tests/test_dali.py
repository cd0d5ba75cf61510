"""DALI's CPU back end in a process of its own, where what it does to the process can be seen."""

import subprocess
import sys

MAPPED = """
import ctypes
from clipbatch.decode.dali import DaliDecoder

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, Mallinfo
libc.free.argtypes = [ctypes.c_void_p]
DaliDecoder(batch_size=1, interpolation="bicubic", device_id=None, threads=1)
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
