"""What a fixed batch shape allows: code that torch compiles for it, and a CUDA graph, which Python launches at once.

Neither knows what the work is. A graph replays the very kernels, so it changes no bit of a result; compiled code rounds
otherwise in places, so whether it is used is frozen with the run.
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
# Calls before a graph is recorded, in which libraries choose algorithms and allocate what they keep.
_WARM_UP = 3


def compiled(work: Work, like: Tensor) -> Work:
    """`work` compiled for batches like `like`, now; what was compiled before is read from clipbatch's cache.

    Nothing is chosen by timing, which might choose otherwise in the next worker.
    Raises: InputError where there is no C compiler.
    """
    if not hardware.has_compiler():
        raise InputError(
            "--compile on needs a C compiler and Python's headers on this machine, as in the packages gcc and "
            "python3-dev: install them, or use --compile off"
        )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("inductor")))
    import torch._inductor.config as inductor

    inductor.deterministic = True
    made: Work = torch.compile(work, dynamic=False)
    made(like)
    return made


class Graph:
    """`work` on batches like `like`, as a CUDA graph. To be called in the stream that it was recorded for, in turn."""

    def __init__(self, work: Work, like: Tensor, stream: torch.cuda.Stream) -> None:
        """Raises: RuntimeError where `work` does what cannot be recorded, such as to wait for the GPU."""
        with torch.inference_mode(False):  # as `like` was made: compiled code is made anew for the other kind
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
