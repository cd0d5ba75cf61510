"""What this machine has, found without importing torch: cores, memory, fast bf16, an NVIDIA GPU."""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use (affinity masks and Slurm's cpusets count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def has_compiler() -> bool:
    """Whether torch.compile finds what it builds its launchers with: a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    return compiler is not None and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers here and CUDA_VISIBLE_DEVICES does not hide its GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg"))


def alone(device: str) -> str:
    """Have CUDA see only `device` in this process, before it is loaded, and return what that is called then.

    Otherwise threads that choose no GPU open a context on the first one, half a GiB for each worker of a machine.
    """
    if not device.startswith("cuda"):
        return device
    number, visible = int(device.partition(":")[2] or 0), os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number].strip() if visible else str(number)
    return "cuda:0"


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX-512 BF16, AMX, or Arm's bf16 extension)."""
    flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def describe() -> dict[str, str | int]:
    """The machine in words and numbers, for reports."""
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
    """What a small file of the kernel's says; empty if it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
