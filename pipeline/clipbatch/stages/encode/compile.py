"""Faster encoding of batches with a fixed shape: code compiled by torch, and CUDA graphs.

A CUDA graph lets Python launch all kernels of a batch in one call. It replays the same kernels, so results stay equal
bit for bit. Compiled code rounds differently in places, so a run freezes whether it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from clipbatch.config import hardware
from clipbatch.errors import InputError
from clipbatch.stages.encode.text import cache_folder

Work = Callable[[Tensor], Tensor]
# Calls before a graph is recorded. In these, libraries choose algorithms and allocate memory that they keep.
_WARM_UP = 3


def compiled(work: Work, like: Tensor) -> Work:
    """`work`, compiled now for batches with the shape of `like`. clipbatch's cache keeps the compiled code.

    No kernel is chosen by timing, since another worker might then choose another one.
    Raises: InputError if there is no C compiler.
    """
    if not hardware.has_compiler():
        raise InputError(
            "--compile on needs a C compiler and Python's headers on this machine, as in the packages gcc and "
            "python3-dev: install them, or use --compile off"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("inductor")))
    import torch._inductor.config as inductor

    if hasattr(inductor, "deterministic"):  # older versions of torch choose nothing by timing, unless they are asked to
        inductor.deterministic = True
    fast: Work = torch.compile(work, dynamic=False)
    fast(like)
    return fast


class Graph:
    """`work` on batches with the shape of `like`, as a CUDA graph. Call it in `stream` only, one batch at a time."""

    def __init__(self, work: Work, like: Tensor, stream: torch.cuda.Stream) -> None:
        """Raises: RuntimeError if `work` does something that cannot be recorded, such as waiting for the GPU."""
        # `like` was created outside inference mode. Compiled code would be compiled again for the other kind of tensor.
        with torch.inference_mode(False):
            self._input = torch.empty_like(like)
        stream.wait_stream(torch.cuda.current_stream(like.device))
        with torch.cuda.stream(stream):
            self._input.copy_(like)
            for _ in range(_WARM_UP):
                work(self._input)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._output = work(self._input)

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        self._input.copy_(pixels_BCHW, non_blocking=True)
        self._graph.replay()
        return self._output.clone()
