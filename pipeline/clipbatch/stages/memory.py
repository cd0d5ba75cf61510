"""Settings of glibc's malloc for freed memory, which suit what a worker allocates.

They hold for the whole process. Other C libraries have no such settings, and nothing is changed there.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from glibc's malloc.h
# Bytes. On a CPU, the largest activations of a batch take half of this; a giant photograph takes more.
_REUSED_BYTES = 2**28


def keep_freed() -> None:
    """Make malloc keep freed blocks up to the size of a batch's activations, and use them again.

    Call it before the first thread starts. By default malloc returns blocks of 32 MiB and more to the kernel, and most
    of the smaller ones that other threads free. Each layer of a model then writes to pages that the kernel first has
    to map and clear, which takes a sixth of the time with ViT-B-16. All threads share one arena, since the arenas of
    other threads cannot hold blocks above 64 MiB.
    """
    _set((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _REUSED_BYTES), (_M_TRIM_THRESHOLD, 4 * _REUSED_BYTES))


def return_freed() -> None:
    """Make malloc map each block of 256 KiB and more on its own, and unmap it when it is freed.

    This is for libraries that allocate a new buffer for each image in many threads. Otherwise malloc keeps their freed
    memory in pieces, in an arena for each thread, and the process grows over tens of thousands of images.
    """
    _set((_M_MMAP_THRESHOLD, 2**18))


def _set(*options: tuple[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, value in options:
        mallopt(name, value)
