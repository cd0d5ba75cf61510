"""GPUs as torch sees them: which can be used, their facts, and streams and events, typed where torch is not.

On a CPU there are no streams and events, and the functions return None.
"""

from __future__ import annotations

import re
import time

import torch

from clipbatch.errors import InputError

_OF_DEVICE = re.compile(r"cuda (runtime|driver|error)|cudaError|CUDNN_STATUS|CUBLAS_STATUS|nvjpeg", re.IGNORECASE)


def is_device_error(error: BaseException) -> bool:
    """Whether `error`, of torch or DALI, says that the GPU failed. Its context cannot be used after that.

    A GPU that runs out of memory has not failed.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, RuntimeError) and _OF_DEVICE.search(str(error)) is not None


def check_device(device: str) -> None:
    """Raises: InputError if `device` is a GPU that torch cannot use."""
    if not device.startswith("cuda"):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        raise InputError(f"--device {device}: torch finds {count} usable GPUs here: use --device cpu or another number")


def device_facts(device: str) -> dict[str, str | float]:
    """The device. For a GPU also its name and, in MiB, the most memory that torch has reserved on it, and what all
    processes use on it now. That includes DALI, whose memory pools never shrink."""
    if not device.startswith("cuda"):
        return {"device": device}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name(device),
        "gpu_peak_mib": torch.cuda.max_memory_reserved(device) // 2**20,
        "gpu_used_mib": (total - free) // 2**20,
    }


def stream_on(device: str) -> torch.cuda.Stream | None:
    """A new stream that starts after all work launched on `device` so far. None on a CPU."""
    if not device.startswith("cuda"):
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def use_own_threads(stream: torch.cuda.Stream | None) -> None:
    """Set up torch for a stage that encodes in threads of its own, each of which computes alone. stream: of the stage.

    Holds for the whole process.
    """
    torch.set_num_threads(1)
    if stream:  # `nn.MultiheadAttention` has a fast path that uses unfused steps on some GPUs
        torch.backends.mha.set_fastpath_enabled(False)


def mark(stream: torch.cuda.Stream | None, *, timed: bool = False) -> torch.cuda.Event | None:
    """An event that completes when `stream` has finished the work it has now. None if `stream` is None.

    A host thread that waits for the event sleeps, and leaves its core to decoding. timed: for `seconds_between`.
    """
    if stream is None:
        return None
    event = torch.cuda.Event(blocking=True, enable_timing=timed)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


# A moment in a stream: a timed event, or on a CPU a time.
Moment = torch.cuda.Event | float


def moment(stream: torch.cuda.Stream | None) -> Moment:
    """The moment at which `stream` has finished the work it has now."""
    return mark(stream, timed=True) or time.perf_counter()


def seconds_between(first: Moment, second: Moment) -> float:
    """Seconds from one moment of a stream to a later one, both of which are over."""
    if isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event):
        return float(first.elapsed_time(second)) / 1000
    assert isinstance(first, float)
    assert isinstance(second, float)
    return second - first
