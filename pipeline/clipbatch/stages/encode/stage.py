"""The encode stage: normalises uint8 pixels and runs the image tower on them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from clipbatch.config import hardware
from clipbatch.errors import InputError, brief
from clipbatch.stages.cuda import is_device_error, mark, stream_on, use_own_threads
from clipbatch.stages.encode import fp8
from clipbatch.stages.encode.compile import Graph, Work, compiled
from clipbatch.stages.encode.model import DTYPES, Model
from clipbatch.types import Decoded, EmbeddedBatch, PixelBatch

_log = logging.getLogger(__name__)


class Normalise:
    """torchvision's ToTensor and Normalize in one pass over the pixels: convert, scale and shift, in fp32.

    A row of pixels is treated as one dimension, so torch's kernels process hundreds of numbers with stride one. If they
    process three channels at a time, they take 1.6 times as long for 224 x 224 pixels on a CPU, and 5 times for
    64 x 64.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], width: int, device: str) -> None:
        """mean, std: for each channel, on a scale from 0 to 1. width: of the images, pixels."""
        mean_C, std_C = (torch.tensor(values, device=device) for values in (mean, std))
        self._scale_WC, self._bias_WC = (1 / (255 * std_C)).repeat(width), (-mean_C / std_C).repeat(width)

    def __call__(self, pixels_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 `pixels_BCHW`, normalised, in `dtype`. The result has channels last in memory, like the pixels."""
        batch, channels, height, width = pixels_BCHW.shape
        rows = pixels_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        normal = torch.addcmul(self._bias_WC, rows, self._scale_WC, out=torch.empty_like(rows, dtype=dtype))
        return normal.view(batch, height, width, channels).permute(0, 3, 1, 2)


# Batches that a GPU has at a time: it encodes one, and the others wait in its queue until Python has prepared more.
_IN_FLIGHT = 3
# Images compared at a time in fp32. A model in fp8 leaves little memory for more.
_COMPARED_AT_ONCE = 32


def trimmed(batch: PixelBatch) -> PixelBatch:
    """`batch` with as many slots as the next power of two, or three quarters of it. So a single image does not cost as
    much as a whole batch, and there are only a few different shapes."""
    images = len(batch.outcomes)
    slots = 1 << max(0, images - 1).bit_length()
    if 4 * images <= 3 * slots:
        slots = 3 * slots // 4
    return replace(batch, pixels_BCHW=batch.pixels_BCHW[:slots])


class Encode:
    """The encode stage. Called with a `PixelBatch`, by up to `threads` threads at a time.

    On a CPU, each core encodes a batch of its own with one thread. So no thread waits for others inside a layer, and
    the operating system divides the cores between decoding and encoding threads. Batches that are not full are
    `trimmed`. On a GPU, all threads launch work into one stream and each waits for its own batch, so the stream always
    has a next batch.

    If the GPU runs out of memory, batches are encoded in pieces from then on; each time that happens, the pieces get
    half as large. That can change scores in the last digit.
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: str,
        device: str,
        batch_size: int,
        compiles: bool = False,
    ) -> None:
        """batch_size: the size of full batches; only these use a CUDA graph and compiled code. compiles: compile the
        model with torch.compile now.

        Raises: InputError if the device cannot compute in `precision`.
        """
        self._loss = None
        if precision == "fp8":
            fp8.check_chip(device)
            self._loss = fp8.Loss(model.module.visual, device)
        model.cast(precision, device)
        if precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # on by default, but TF32 has a mantissa of only 10 bits
        if precision == "fp8":
            fp8.to_fp8(model.module.visual)
        self._module, self._dtype = model.module, DTYPES[precision]
        self._normal = Normalise(model.mean, model.std, model.width, device)
        self._stream = stream_on(device)
        use_own_threads(self._stream)
        self._turn = threading.Lock() if self._stream else contextlib.nullcontext()
        self.threads = _IN_FLIGHT if self._stream else hardware.cores()
        self._at_once = self._batch_size = batch_size
        like_BHWC = torch.zeros((batch_size, model.height, model.width, 3), dtype=torch.uint8, device=device)
        # Why torch.compile failed, in which case the model runs without it; None if it did not, or was not asked for.
        self.not_compiled: str | None = None
        self._whole = self._prepared(like_BHWC.permute(0, 3, 1, 2), compiles=compiles)

    @torch.inference_mode()
    def _prepared(self, like_BCHW: Tensor, *, compiles: bool) -> Work:
        """`embed` for full batches, which have the shape of `like_BCHW`."""
        whole: Work = self._embed
        if compiles:
            try:
                whole = compiled(self._embed, like_BCHW)
            except InputError as error:
                self.not_compiled = str(error)
            except Exception as error:  # the compiler, the C compiler and the GPU raise all kinds of exceptions
                if is_device_error(error):
                    raise
                self.not_compiled = f"torch.compile fails here: {brief(error)}"
        if self._stream is None:
            return whole
        try:
            return Graph(whole, like_BCHW, self._stream)
        except torch.OutOfMemoryError:
            pass  # `_encode` deals with that
        except RuntimeError as error:  # without a graph the results are the same, only slower
            _log.warning(
                f"this model cannot be recorded as a CUDA graph and runs without one: {str(error).splitlines()[0]}"
            )
        with contextlib.suppress(RuntimeError):  # older versions of torch refuse it after a recording that failed
            torch.cuda.empty_cache()  # after the except blocks, when nothing refers to the unfinished graph
        return whole

    def __call__(self, batch: PixelBatch) -> EmbeddedBatch:
        """Encode `batch`. Returns when the embeddings are complete."""
        if self._stream is None:
            batch = trimmed(batch)
        with self._turn, torch.cuda.stream(self._stream):
            if self._stream and batch.ready:
                self._stream.wait_event(batch.ready)
            image_BD = self._encode(batch.pixels_BCHW)
            if self._loss and self._loss.wanted:
                self._compare(self._loss, batch, image_BD)
            done = mark(self._stream)
        if done:
            done.synchronize()
        return EmbeddedBatch(source=batch.source, outcomes=batch.outcomes, image_BD=image_BD)

    def facts(self) -> dict[str, float]:
        """The size of pieces and the loss of fp8, for the report; empty if there is neither."""
        in_pieces = {} if self._at_once == self._batch_size else {"encoded_at_once": self._at_once}
        return in_pieces | (self._loss.facts() if self._loss else {})

    @torch.inference_mode()
    def _compare(self, loss: fp8.Loss, batch: PixelBatch, image_BD: Tensor) -> None:
        slots = [slot for slot, outcome in enumerate(batch.outcomes) if isinstance(outcome, Decoded)]
        if not slots:
            return
        for at in range(0, len(slots), _COMPARED_AT_ONCE):
            some = slots[at : at + _COMPARED_AT_ONCE]
            loss.compare(self._normal(batch.pixels_BCHW[some], torch.float32), image_BD[some])
            if not loss.wanted:
                break
        if not loss.wanted:
            facts = loss.facts()
            _log.warning(
                f"fp8 compared with fp32 on the first {facts['fp8_images']} images: the cosine is "
                f"{facts['fp8_cosine_mean']:.4f} on average and {facts['fp8_cosine_worst']:.4f} at worst"
            )

    @torch.inference_mode()
    def _encode(self, pixels_BCHW: Tensor) -> Tensor:
        """`embed`, in as many pieces as the memory requires."""
        while True:
            at_once = self._at_once
            try:
                if at_once >= len(pixels_BCHW):
                    whole = len(pixels_BCHW) == self._batch_size
                    return self._whole(pixels_BCHW) if whole else self.embed(pixels_BCHW)
                pieces = torch.split(pixels_BCHW, at_once)
                return torch.cat([self.embed(piece) for piece in pieces])
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
            self._whole = self.embed
            self._at_once = at_once // 2
            torch.cuda.empty_cache()
            _log.warning(
                f"the GPU ran out of memory: from here on, batches are encoded {self._at_once} images at a time, which "
                "may change scores in the last digit; use a smaller --batch-size"
            )

    @torch.inference_mode()
    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 RGB pixels -> `image_BD`, float32, unit length."""
        return self._embed(pixels_BCHW)

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        image_BD: Tensor = self._module.encode_image(self._normal(pixels_BCHW, self._dtype))
        return functional.normalize(image_BD.float(), dim=-1)
