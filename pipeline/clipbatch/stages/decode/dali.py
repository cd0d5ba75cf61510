"""Decodes with NVIDIA DALI: on a GPU (`mixed`: JPEG engines and CUDA), or with the same graph on DALI's CPU back end.

`geometry` computes the crop of each image beforehand, in input pixels, so one resize does the work of a resize and a
crop. DALI cannot skip an image that it fails to decode, so such images are taken out and the rest is run again. Only
images that `inspect` accepts may come here: others can end the process.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, tensors, types
from torch import Tensor

from clipbatch.stages import memory
from clipbatch.stages.ceilings import CUDA, ENGINES
from clipbatch.stages.cuda import Moment, mark, moment, seconds_between
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
# Two pipelines that differ by less than this share of a batch's time are done at the same time.
_TIE = 0.02
# Memory for images of so many pixels a side is taken when a pipeline is built, not while batches flow.
_USUAL_SIDE = 1024


class DaliDecoder:
    """Two DALI pipelines for one lane: one for the GPU's JPEG engines, one for CUDA. One thread uses it at a time.

    A single pipeline would divide each batch by a share that nvImageCodec fixes with the first batch that it sees, and
    by the image's place in the batch. So which image gets which decoder, and with it the last bit of its pixels, would
    depend on what came before. With two pipelines the job says who decodes it (`DecodeJob.engines`).
    """

    name: DecoderName = "dali"
    kinds = frozenset({"jpeg", "png", "webp"})

    def __init__(
        self, *, batch_size: int, interpolation: str, device_id: int | None, threads: int, engines: bool
    ) -> None:
        """device_id: the GPU; None: DALI's CPU back end. engines: make the pipeline for JPEG engines, too."""
        # Seconds for which batches waited for each pipeline, `ENGINES` or `CUDA`, counting only the one that was last.
        self.waited_s = dict.fromkeys((ENGINES, CUDA), 0.0)
        # When each group of the last batch began, and when each of its pipelines was done.
        self._moments: list[tuple[Moment, list[tuple[str, Moment]]]] = []
        self._copied: torch.cuda.Event | None = None
        # What the GPU still reads until `_copied` completes: encoded bytes, and crops in DALI's memory.
        self._in_use: list[Any] = []
        if device_id is None:
            memory.return_freed()
        self._cuda, *others = (
            _Pipeline(
                interpolation=interpolation,
                hw_decoder_load=load,
                batch_size=batch_size,
                device_id=device_id,
                threads=threads,
            )
            for load in ((0.0, 1.0) if engines else (0.0,))
        )
        self._engines = others[0] if others else self._cuda

    def fill(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode and resize the image of each job and put it into its slot. Returns the jobs that failed.

        On a GPU the crops are copied in torch's current stream, and the copy may not be complete on return.
        """
        if self._copied is not None:
            self._copied.synchronize()
            self._in_use.clear()
        self._note_waits()
        try:
            return [job for group in _groups(jobs) for job in self._fill_group(pixels_BCHW, group)]
        finally:
            self._copied = mark(_stream_of(pixels_BCHW))

    def _fill_group(self, pixels_BCHW: Tensor, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Both pipelines at the same time."""
        work: dict[_Pipeline, list[DecodeJob]] = {}
        for job in jobs:
            work.setdefault(self._engines if job.engines else self._cuda, []).append(job)
        stream, failed = _stream_of(pixels_BCHW), list[DecodeJob]()
        begun, ends = moment(stream), list[tuple[str, Moment]]()
        for pipeline, some in work.items():
            pipeline.start(some)
        try:
            for pipeline, some in work.items():
                failed += self._finish(pixels_BCHW, pipeline, some)
                ends.append((CUDA if pipeline is self._cuda else ENGINES, moment(stream)))
            if ends:
                self._moments.append((begun, ends))
            return failed
        except BaseException:
            for pipeline in work:  # or else the next batch would get these images
                pipeline.drop()
            raise

    def _note_waits(self) -> None:
        """Add the last batch to `waited_s`. Its copies must be complete."""
        for begun, ends in self._moments:
            taken_s = seconds_between(begun, ends[-1][1])
            first_s = seconds_between(begun, ends[0][1])
            binding, _ = ends[-1] if taken_s - first_s > _TIE * taken_s else ends[0]
            self.waited_s[binding] += taken_s
        self._moments.clear()

    def _finish(self, pixels_BCHW: Tensor, pipeline: _Pipeline, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Place what `pipeline` makes of `jobs`, with which it has been started. Returns the jobs that failed."""
        left, failed = jobs, list[DecodeJob]()
        for attempt in range(_MAX_TRIES):
            if attempt:
                pipeline.start(left)
            try:
                self._place(pixels_BCHW, pipeline, left)
                return failed
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
                    return failed + self._in_halves(pixels_BCHW, pipeline, left)
                named = {int(number) for number in _FAILED_SAMPLE.findall(str(error))}
                if not named:
                    raise
            if pixels_BCHW.is_cuda:  # DALI takes the memory of the failed batch again without waiting for the GPU
                torch.cuda.synchronize(pixels_BCHW.device)
            failed += [job for number, job in enumerate(left) if number in named]
            left = [job for number, job in enumerate(left) if number not in named]
            if not left:
                return failed
        if len(left) <= 1:
            return failed + left
        return failed + [job for one in left for job in self._restart(pixels_BCHW, pipeline, [one])]

    def _restart(self, pixels_BCHW: Tensor, pipeline: _Pipeline, jobs: list[DecodeJob]) -> list[DecodeJob]:
        pipeline.start(jobs)
        return self._finish(pixels_BCHW, pipeline, jobs)

    def _in_halves(self, pixels_BCHW: Tensor, pipeline: _Pipeline, jobs: list[DecodeJob]) -> list[DecodeJob]:
        """Decode `jobs` in two halves because memory does not suffice for all. A single job counts as failed."""
        _log.warning("DALI ran out of memory: decoding such batches in pieces; a smaller --batch-size is faster")
        if pixels_BCHW.is_cuda:
            torch.cuda.synchronize(pixels_BCHW.device)
            torch.cuda.empty_cache()  # memory that torch has kept for later
        if len(jobs) == 1:
            return jobs
        half = len(jobs) // 2
        return [job for part in (jobs[:half], jobs[half:]) for job in self._restart(pixels_BCHW, pipeline, part)]

    def _place(self, pixels_BCHW: Tensor, pipeline: _Pipeline, jobs: list[DecodeJob]) -> None:
        stream = _stream_of(pixels_BCHW)
        crops = pipeline.crops(stream)  # queued in the stream, without waiting for the GPU
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


class _Pipeline:
    """One DALI pipeline: `start` it with jobs, then take their `crops`."""

    def __init__(
        self, *, interpolation: str, hw_decoder_load: float, batch_size: int, device_id: int | None, threads: int
    ) -> None:
        self._error: Exception | None = None
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

    def start(self, jobs: list[DecodeJob]) -> None:
        """Begin with `jobs`. An error is kept for `crops`."""
        boxes = np.array([job.geometry.box for job in jobs], np.float32)
        feed = self._pipeline.feed_input  # DALI loops in Python over lists of ours, but not over its own and arrays
        self._error = None
        try:
            feed("encoded", _listed([job.data for job in jobs]))
            for name, columns in (("start", boxes[:, :2]), ("end", boxes[:, 2:4]), ("size", boxes[:, 4:])):
                feed(name, np.ascontiguousarray(columns))
            self._pipeline.schedule_run()
        except (RuntimeError, MemoryError) as error:
            self._error = error

    def crops(self, stream: torch.cuda.Stream | None) -> Any:
        """DALI's list of the crops, ready in the order of `stream`. Raises: RuntimeError, MemoryError."""
        if self._error:
            raise self._error
        (crops,) = self._pipeline.outputs(stream)
        return crops

    def drop(self) -> None:
        """Take what was started and has not been taken, if anything, so that the pipeline can be started again."""
        with contextlib.suppress(RuntimeError, MemoryError, StopIteration):
            self._pipeline.outputs()


def _listed(encoded: list[bytearray]) -> Any:
    """A DALI list of the images' bytes, without a copy."""
    images = [tensors.TensorCPU(data) for data in encoded]
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
def _graph(interpolation: Any, device: str, hw_decoder_load: float) -> Any:
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
        preallocate_width_hint=_USUAL_SIDE,
        preallocate_height_hint=_USUAL_SIDE,
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
