"""Profiles a worker: names time ranges after the stages and writes a Chrome trace of the first batches.

The ranges appear in the trace and, on a GPU, also in NVIDIA's tools (NVTX).
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

# The trace ends after this many written batches. That shows the rhythm of the stages, in about ten megabytes.
PROFILED_BATCHES = 64


def ranged(stage: Stage, device: str) -> Stage:
    """`stage`, with a range of its name around each call of its work."""

    def work(item: Any) -> Any:
        with record_function(stage.name), _nvtx(stage.name, device):
            return stage.work(item)

    return dataclasses.replace(stage, work=work)


def _nvtx(name: str, device: str) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.nvtx.range(name) if device.startswith("cuda") else contextlib.nullcontext()


class Profile:
    """Traces all threads of this process from now on, until `PROFILED_BATCHES` are written or `save` is called."""

    def __init__(self, path: str | None, device: str) -> None:
        """path: the file to write. None: do not trace."""
        self._path, self._left = path, PROFILED_BATCHES
        if path is not None:
            gpu = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
            threads = _ExperimentalConfig(profile_all_threads=True)
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], experimental_config=threads)
            self._profile.start()

    def step(self) -> None:
        """Count a batch that has been written."""
        self._left -= 1
        if self._left == 0:
            self.save()

    def save(self) -> None:
        """Write the trace, unless it has been written."""
        if self._path is None:
            return
        path, self._path = Path(self._path), None
        self._profile.stop()
        scratch = temp_name(path)
        self._profile.export_chrome_trace(str(scratch))
        os.replace(scratch, path)
