"""What hardware this machine has: cores, memory, fast bf16, an NVIDIA GPU. Does not import torch."""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

# The remedy where a container hides the driver's decoding library, without which a GPU has no JPEG engines.
VIDEO_REMEDY = "in a container, start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility,video (or all)"


def cores() -> int:
    """CPU cores that this process may use. Respects affinity masks and Slurm's cpusets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the whole machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def has_compiler() -> bool:
    """Whether this machine has what torch.compile needs: a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    return compiler is not None and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA driver and CUDA_VISIBLE_DEVICES does not hide its GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg"))


def hide_other_gpus(device: str) -> str:
    """Hide every GPU but `device` from this process. Returns the new name of `device`. Call it before CUDA is loaded.

    Otherwise a thread that does not choose a GPU opens a context on the first one, which costs half a GiB per worker.
    """
    if not device.startswith("cuda"):
        return device
    # Hardware queues for the streams of all decoders; CUDA's default is 8, and each decoder makes nine streams.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    number, visible = int(device.partition(":")[2] or 0), os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number].strip() if visible else str(number)
    return "cuda:0"


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm's bf16 extension)."""
    flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def describe() -> dict[str, str | int]:
    """Name and size of this machine, for reports."""
    return {
        "host": platform.node(),
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cores": cores(),
        "memory_gib": round(memory_bytes() / 2**30),
        "system": platform.platform(),
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")


def text_of(path: Path) -> str:
    """The text of a small file, such as one of the kernel; '' if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
