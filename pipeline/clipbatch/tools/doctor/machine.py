"""The checks of `clipbatch doctor` that load no library: driver, cores, compiler, shared memory, speed of the disk."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from clipbatch.config import hardware
from clipbatch.stages.read.stage import LOCAL_READS
from clipbatch.storage.uris import is_url
from clipbatch.workers import devices, words

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of a check."""

    name: str
    # warning: a run works, but slower or without something. failure: a run with these settings does not work.
    level: Level
    text: str
    # What to do; empty only if `level` is ok.
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.level == "ok") == (not self.remedy), self


def lines(findings: list[Finding]) -> str:
    """`findings` for a terminal, each remedy below its finding."""
    texts = []
    for finding in findings:
        texts.append(f"{finding.level:8} {finding.name:14} {finding.text}")
        if finding.remedy:
            texts.append(f"{'':8} {'':14} -> {finding.remedy}")
    return "\n".join(texts)


# Not measured, but estimated: with fewer cores, reading and parsing may be slower than a GPU that decodes and encodes.
CORES_PER_GPU = 8
# Estimated: 4,000 photographs of 100 kB a second, about what a ViT-B-32 on a GPU needs.
GPU_DISK_MB_S = 400
# Larger files are taken for archives or tables, of photographs as large as those of the benchmarks.
_ARCHIVE_BYTES = 20e6
_PHOTOGRAPH_BYTES = 173e3
# So many files tell the speed of a disk, however soon they have been read.
_ENOUGH_FILES = 100
_READ_S = 3.0
_READ_FILES = 2000
_BLOCK = 2**22
_NVIDIA = "0x10de"


def driver(root: Path = Path("/")) -> Finding:
    """Whether NVIDIA's kernel driver is loaded and lets this process use its GPUs."""
    if hardware.has_gpu():
        match = re.search(r"Kernel Module\D*([0-9.]+)", hardware.text_of(root / "proc/driver/nvidia/version"))
        version = f"version {match[1]}" if match else "version not stated"
        return Finding(name="driver", level="ok", text=f"{version}, GPUs that CUDA may use: {devices.gpu_count()}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(
            name="driver",
            level="warning",
            text=f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides all GPUs; runs use the CPU",
            remedy="unset CUDA_VISIBLE_DEVICES to use them",
        )
    if any(_is_nvidia(card) for card in (root / "sys/bus/pci/devices").glob("*")):
        return Finding(
            name="driver",
            level="failure",
            text="this machine has an NVIDIA GPU, but no driver answers (/dev/nvidiactl)",
            remedy="install NVIDIA's driver; in a container, start it with the GPUs (docker run --gpus all)",
        )
    return Finding(
        name="driver",
        level="warning",
        text="this machine has no NVIDIA GPU that can be used; runs use the CPU",
        remedy="for a GPU: its driver, and in a container docker run --gpus all; for CPU work nothing is missing",
    )


def cores() -> Finding:
    """The number of CPU cores, in all and for each GPU."""
    count, gpus = hardware.cores(), devices.gpu_count()
    text = f"{count} usable" + (f", {count / gpus:.3g} for each of {gpus} GPUs" if gpus else "")
    if gpus and count < gpus * CORES_PER_GPU:
        return Finding(
            name="cores",
            level="warning",
            text=text,
            remedy=f"request {CORES_PER_GPU} or more cores a GPU (--cpus-per-task, docker --cpus), or use fewer --gpus",
        )
    return Finding(name="cores", level="ok", text=text)


def compiler() -> Finding:
    """Whether torch.compile has the compiler that it needs."""
    if hardware.has_compiler():
        return Finding(name="compiler", level="ok", text="a C compiler and Python's headers, as --compile needs them")
    if not devices.gpu_count():
        return Finding(name="compiler", level="ok", text="none; only runs on a GPU use one")
    return Finding(
        name="compiler",
        level="warning",
        text="no C compiler, or no headers of Python: runs work without --compile",
        remedy="install gcc and python3-dev, so that long runs compile the encoder",
    )


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """The size of /dev/shm. Its limit does not matter: clipbatch's processes share anonymous memory."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return Finding(name="shared memory", level="ok", text=f"no {folder}; clipbatch does not use it")
    mib = room.f_frsize * room.f_blocks // 2**20
    return Finding(name="shared memory", level="ok", text=f"{mib} MiB in {folder}, of which clipbatch uses none")


def disk(place: str, images_per_s: float | None) -> Finding:
    """How fast `place`, a file or a folder, is read by as many threads as a run has. Takes at most three seconds.

    images_per_s: what the CPU labels, so that reading has to keep up with it; None: a GPU does.
    The kernel is asked to drop each file from the page cache first. It does not do so for files that others use.
    """
    if is_url(place) or place == "-":
        return Finding(name="disk", level="ok", text=f"{place}: not measured; clipbatch tune INPUT reads its images")
    start, deadline = time.perf_counter(), time.perf_counter() + _READ_S
    with ThreadPoolExecutor(LOCAL_READS) as pool:
        sizes = list(pool.map(lambda path: _read(path, deadline), islice(_files(Path(place)), _READ_FILES)))
    seconds, read = time.perf_counter() - start, [size for size in sizes if size]
    if not read:
        return Finding(
            name="disk",
            level="warning",
            text=f"{place}: not measured, as no file there can be read",
            remedy="name the images: clipbatch doctor INPUT",
        )
    rate, mean = sum(read) / seconds / 1e6, sum(read) / len(read)
    text = f"{place}: {words.rate(rate)} MB/s in {len(read)} files, {LOCAL_READS} at a time"
    too_short = seconds <= _READ_S / 10 and len(read) < _ENOUGH_FILES  # a few small files do not tell the speed
    wanted: float = GPU_DISK_MB_S
    if images_per_s is not None:
        wanted = images_per_s * (mean if mean < _ARCHIVE_BYTES else _PHOTOGRAPH_BYTES) / 1e6
    if rate < wanted and not too_short:
        text += f"; labelling takes up to {words.rate(wanted)} MB/s of such files"
        return Finding(
            name="disk",
            level="warning",
            text=text,
            remedy="a run may wait for it: try more --read-threads (clipbatch tune), a local disk, or tar archives",
        )
    return Finding(name="disk", level="ok", text=text)


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in names)


def _read(path: Path, deadline: float) -> int:
    """How many bytes of `path` were read before `deadline`; 0 if it cannot be read or is not a file."""
    done = 0
    with contextlib.suppress(OSError):
        if not path.is_file():
            return 0
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while time.perf_counter() < deadline and (block := file.read(_BLOCK)):
                done += len(block)
    return done


def _is_nvidia(card: Path) -> bool:
    is_display = hardware.text_of(card / "class").startswith("0x03")
    return hardware.text_of(card / "vendor") == _NVIDIA and is_display
