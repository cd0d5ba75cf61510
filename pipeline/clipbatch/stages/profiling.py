"""What a worker's threads and its GPU do: ranges named after the stages, and a Chrome trace of the first batches.

The ranges show in a trace, and on a GPU (NVTX) also in NVIDIA's own tools. Knows nothing of what stages do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from clipbatch.stages.flow import Stage
from clipbatch.storage.atomic import temp_name

# Written batches after which a trace ends: enough to see the rhythm, and some ten megabytes.
PROFILED_BATCHES = 64


def ranged(stage: Stage, device: str) -> Stage:
    """`stage` with a range of its name around each of its works."""

    def work(item: Any) -> Any:
        with record_function(stage.name), _nvtx(stage.name, device):
            return stage.work(item)

    return dataclasses.replace(stage, work=work)


def _nvtx(name: str, device: str) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.nvtx.range(name) if device.startswith("cuda") else contextlib.nullcontext()


class Profile:
    """Traces all threads of this process from its making on, until `PROFILED_BATCHES` are written or it is saved."""

    def __init__(self, path: str | None, device: str) -> None:
        """path: the file to write, None for none."""
        self._path, self._left = path, PROFILED_BATCHES
        if path is not None:
            gpu = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
            threads = _ExperimentalConfig(profile_all_threads=True)
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], experimental_config=threads)
            self._profile.start()

    def step(self) -> None:
        """A batch has been written."""
        self._left -= 1
        if self._left == 0:
            self.save()

    def save(self) -> None:
        """Write the trace, unless that is done."""
        if self._path is None:
            return
        path, self._path = Path(self._path), None
        self._profile.stop()
        scratch = temp_name(path)
        self._profile.export_chrome_trace(str(scratch))
        os.replace(scratch, path)
