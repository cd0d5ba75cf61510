"""The share of a batch that CPU cores decode while DALI decodes the rest, by rules on the image.

Knows nothing of DALI, nor of how long anything takes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from clipbatch.decode.geometry import Target
from clipbatch.decode.pixels import FastDecoder, Job, blank, scatter

GIANT_PIXELS = 2**26
"""67 megapixels: larger images would fill the device's memory, which DALI never gives back, for the sake of a few."""


def for_cores(row_id: int, pixels: int, share: float) -> bool:
    """Whether a CPU core decodes the image: a giant, or one of `share` of the rows, spread evenly."""
    return pixels > GIANT_PIXELS or int((row_id + 1) * share) > int(row_id * share)


class Cores:
    """Threads that decode; used by all lanes of the decode stage at once."""

    def __init__(self, target: Target, *, threads: int) -> None:
        self._target = target
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def start(self, work: list[tuple[FastDecoder, Job]], device: str) -> Callable[[Tensor], list[Job]]:
        """Begin to decode, each job with its decoder, which has no state.

        What is returned waits, places the images into a batch, and returns the jobs that failed.
        """
        target, jobs = self._target, [job for _, job in work]
        host_BCHW = blank(len(jobs), target.height, target.width, target.fill, "cpu", pinned=device != "cpu")
        going = [
            self._pool.submit(decoder.fill, host_BCHW, [replace(job, slot=at)])
            for at, (decoder, job) in enumerate(work)
        ]

        def finish(pixels_BCHW: Tensor) -> list[Job]:
            failed = [job for job, one in zip(jobs, going, strict=True) if one.result()]
            scatter(pixels_BCHW, [job.slot for job in jobs], host_BCHW)
            return failed

        return finish
