"""What glibc's malloc does with blocks that are freed. Other C libraries have no such settings and are left alone.

For the whole process.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
# Bytes: the largest activations of a batch on a CPU take half of this, a giant photograph more.
_SMALLER_THAN_A_GIANT = 2**28


def keep_freed() -> None:
    """Have malloc use freed blocks of a batch's size again. To be called before the first thread is started.

    By itself it gives blocks of 32 MiB and more back to the kernel, and much of the smaller ones that threads free.
    Each layer of a model then writes into pages that the kernel has to map and clear first: a sixth of the time with
    ViT-B-16. One arena for all threads, since theirs hold no block above 64 MiB.
    """
    _set((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _SMALLER_THAN_A_GIANT), (_M_TRIM_THRESHOLD, 4 * _SMALLER_THAN_A_GIANT))


def return_freed() -> None:
    """Have malloc map each block of 256 KiB and more on its own, and unmap it when it is freed.

    For libraries that allocate whole images anew in many threads: what they free would be kept in an arena for each, in
    pieces, and the process would grow for tens of thousands of images.
    """
    _set((_M_MMAP_THRESHOLD, 2**18))


def _set(*options: tuple[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, value in options:
        mallopt(name, value)
