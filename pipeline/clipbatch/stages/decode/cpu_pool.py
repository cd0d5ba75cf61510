"""Threads that decode images on the CPU while DALI decodes the rest of a batch, and which images these are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.decode.pixels import DecodeJob, FastDecoder, blank, scatter

# 67 megapixels. A few larger images would fill the device's memory, which DALI never gives back.
GIANT_PIXELS = 2**26


def goes_to_cpu(row_id: int, pixels: int, share: float) -> bool:
    """Whether a CPU core decodes the image: it is a giant, or belongs to the `share` of rows, spread evenly."""
    return pixels > GIANT_PIXELS or int((row_id + 1) * share) > int(row_id * share)


class CpuPool:
    """Threads that decode images. All lanes of the decode stage share them."""

    def __init__(self, target: Target, *, threads: int) -> None:
        self._target = target
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        """End the threads; to be called when nothing is being decoded."""
        self._pool.shutdown()

    def start(self, work: list[tuple[FastDecoder, DecodeJob]], device: str) -> Callable[[Tensor], list[DecodeJob]]:
        """Start to decode each job with its decoder, which must not keep state.

        Returns a function that waits for the jobs, puts their images into a batch, and returns the jobs that failed.
        """
        target, jobs = self._target, [job for _, job in work]
        host_BCHW = blank(len(jobs), target.height, target.width, target.fill, "cpu", pinned=device != "cpu")
        futures = [
            self._pool.submit(decoder.fill, host_BCHW, [job._replace(slot=at)])
            for at, (decoder, job) in enumerate(work)
        ]

        def finish(pixels_BCHW: Tensor) -> list[DecodeJob]:
            failed = [job for job, future in zip(jobs, futures, strict=True) if future.result()]
            scatter(pixels_BCHW, [job.slot for job in jobs], host_BCHW)
            return failed

        return finish
