"""Decodes with NVIDIA DALI: on a GPU (`mixed`: JPEG engines and CUDA), or with the same graph on DALI's CPU back end.

`geometry` computes the crop of each image beforehand, in input pixels, so one resize does the work of a resize and a
crop. DALI cannot skip an image that it fails to decode, so such images are taken out and the rest is run again. Only
images that `inspect` accepts may come here: others can end the process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, tensors, types
from torch import Tensor

from clipbatch.stages import memory
from clipbatch.stages.cuda import mark
from clipbatch.stages.decode.pixels import DecodeJob, place, scatter
from clipbatch.types import DecoderName

_INTERPOLATION = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}
_FAILED_SAMPLE = re.compile(r"Failed to decode sample #(\d+)")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|memory allocation|allocation failed|can't allocate|ALLOCATOR_FAILURE", re.IGNORECASE
)

_log = logging.getLogger(__name__)
_MAX_TRIES = 4
# Images are decoded in groups of at most 268 megapixels: 0.8 GB of uint8 RGB.
_PIXELS_AT_ONCE = 2**28


class DaliDecoder:
    """A DALI pipeline. Only one thread uses it at a time."""

    name: DecoderName = "dali"
    kinds = frozenset({"jpeg", "png", "webp"})

    def __init__(
        self,
        *,
        batch_size: int,
        interpolation: str,
        device_id: int | None,
        threads: int,
        hw_decoder_load: float | None = None,
    ) -> None:
        """hw_decoder_load: the share of JPEGs for the GPU's JPEG engines. None: DALI's default."""
        self._copied: torch.cuda.Event | None = None
        # What the GPU still reads until `_copied` completes: encoded bytes, and crops in DALI's memory.
        self._in_use: list[Any] = []
        if device_id is None:
            memory.return_freed()
        self._pipeline = _graph(
            interpolation=_INTERPOLATION[interpolation],
            hw_decoder_load=hw_decoder_load,
            device="cpu" if device_id is None else "mixed",
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,  # with this executor, the pipeline still works after a failed batch
        )
        self._pipeline.build()

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode and resize the image of each job and put it into its slot. Returns the jobs that failed.

        On a GPU the crops are copied in torch's current stream, and the copy may not be complete on return.
        """
        if self._copied is not None:
            self._copied.synchronize()
            self._in_use.clear()
        try:
            return [job for group in _groups(jobs) for job in self._fill_group(pixels_BCHW, group)]
        finally:
            self._copied = mark(_stream_of(pixels_BCHW))

    def _fill_group(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        left, failed = jobs, list[DecodeJob]()
        for _ in range(_MAX_TRIES):
            if not left:
                return failed
            try:
                self._run(pixels_BCHW, left)
                return failed
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
                    return failed + self._in_halves(pixels_BCHW, left)
                named = {int(number) for number in _FAILED_SAMPLE.findall(str(error))}
                if not named:
                    raise
                failed += [job for number, job in enumerate(left) if number in named]
                left = [job for number, job in enumerate(left) if number not in named]
        if len(left) <= 1:
            return failed + left
        return failed + [job for one in left for job in self._fill_group(pixels_BCHW, [one])]

    def _in_halves(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode `jobs` in two halves because memory does not suffice for all. A single job counts as failed."""
        _log.warning("DALI ran out of memory: decoding such batches in pieces; a smaller --batch-size is faster")
        torch.cuda.empty_cache()  # memory that torch has kept for later
        if len(jobs) == 1:
            return jobs
        half = len(jobs) // 2
        return [job for part in (jobs[:half], jobs[half:]) for job in self._fill_group(pixels_BCHW, part)]

    def _run(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> None:
        axes = [(job.geometry.y, job.geometry.x) for job in jobs]
        regions = np.array([(y.region, x.region) for y, x in axes], np.float32)  # image, axis, start or end
        feed = self._pipeline.feed_input  # DALI loops in Python over lists of ours, but not over its own and arrays
        feed("encoded", _listed([job.data for job in jobs]))
        feed("start", np.ascontiguousarray(regions[:, :, 0]))
        feed("end", np.ascontiguousarray(regions[:, :, 1]))
        feed("size", np.array([(y.kept, x.kept) for y, x in axes], np.float32))
        stream = _stream_of(pixels_BCHW)
        (crops,) = self._pipeline.run(stream)  # queued in the stream, without waiting for the GPU
        if stream is not None:
            self._in_use.append((crops, jobs))
        one_by_one = list(range(len(jobs)))
        if crops.is_dense_tensor():
            crops_BCHW = torch.utils.dlpack.from_dlpack(crops.as_tensor()).permute(0, 3, 1, 2)
            if crops_BCHW.shape[1:] == pixels_BCHW.shape[1:]:  # all at once; those to be turned are placed again below
                scatter(pixels_BCHW, [job.slot for job in jobs], crops_BCHW)
                one_by_one = [number for number in one_by_one if not jobs[number].geometry.plain]
        for number in one_by_one:
            crop_HWC = torch.utils.dlpack.from_dlpack(crops[number])
            place(pixels_BCHW, jobs[number].slot, crop_HWC.permute(2, 0, 1), jobs[number].geometry)


def _listed(encoded: list[bytearray]) -> Any:
    """A DALI list of the images' bytes, without a copy."""
    images = [tensors.TensorCPU(np.frombuffer(data, np.uint8)) for data in encoded]
    return tensors.TensorListCPU(images, contiguous=False)  # type: ignore[call-overload]  # not in DALI's stubs


def _stream_of(pixels_BCHW: Tensor) -> torch.cuda.Stream | None:
    """torch's current stream on the GPU of the pixels; None for pixels on a CPU."""
    return torch.cuda.current_stream(pixels_BCHW.device) if pixels_BCHW.is_cuda else None


def _groups(jobs: list[DecodeJob]) -> Iterator[list[DecodeJob]]:
    """`jobs` in groups of at most `_PIXELS_AT_ONCE` pixels, since DALI keeps all whole images of a run in memory."""
    group, pixels = list[DecodeJob](), 0
    for job in jobs:
        size = job.geometry.y.source * job.geometry.x.source
        if group and pixels + size > _PIXELS_AT_ONCE:
            yield group
            group, pixels = [], 0
        group.append(job)
        pixels += size
    yield group


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(interpolation: Any, device: str, hw_decoder_load: float | None) -> Any:
    """The graph: encoded bytes, the crop in input pixels and its size -> uint8 HWC crops."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
    end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    images = fn.decoders.image(
        encoded,
        device=device,
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        hw_decoder_load=hw_decoder_load,
    )
    return fn.resize(
        images,
        size=size,
        roi_start=start,
        roi_end=end,
        interp_type=interpolation,
        antialias=True,
        subpixel_scale=False,
    )
