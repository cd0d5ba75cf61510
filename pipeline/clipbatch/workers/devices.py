"""Chooses the devices that this process uses, and the CPU cores of the worker on each device.

A worker is fastest on cores that are near its GPU. So cores are sorted by memory node (NUMA) and then by physical core,
workers are sorted by the node of their GPU, and each worker gets one contiguous piece of the sorted cores. On a regular
server each worker then stays on the node of its GPU. On any other machine all cores are still used, and as few workers
as possible share a core.

Everything is read from files of the kernel and of NVIDIA's driver; no library is loaded and no GPU is used. Where a
file does not exist (on other systems and in some containers), cores are divided in the order of their numbers.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from clipbatch.config import Settings, hardware
from clipbatch.config.validation import SettingError
from clipbatch.errors import InputError
from clipbatch.workers.ranks import Rank

_ROOT = Path("/")
# By the longest time that Python's lock was held, 42 microseconds an image (benchmarks/results/2026-11-30-lock.md).
_IMAGES_PER_S_OF_A_WORKER = 24_000
_MAX_WORKERS_PER_GPU = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The device and the CPU cores of one worker process."""

    # "cpu" or "cuda:N".
    device: str
    # The numbers of its CPU cores, as the kernel counts them.
    cores: tuple[int, ...]
    # Which of several workers on the device this is, from 1; None if it is the only one.
    worker: int | None = None

    def __str__(self) -> str:
        return self.device if self.worker is None else f"{self.device}, worker {self.worker}"


def seats(settings: Settings, rank: Rank) -> list[Seat]:
    """A seat for each worker of this process.

    rank: if several ranks share a machine, each of them uses different GPUs.
    Raises: InputError if the settings of devices contradict each other, or a device does not exist.
    """
    launch, device = settings.launch, settings.model.device
    if launch.gpus is not None and device not in ("auto", "cuda"):
        raise SettingError(f"gpus {launch.gpus} and device {device} contradict each other: leave one of them out")
    cores = cores_by_node()
    if device == "cpu" or (device == "auto" and launch.gpus is None and not hardware.has_gpu()):
        workers = launch.workers or 1
        if launch.workers_per_gpu is not None:
            raise SettingError(
                f"workers_per_gpu {launch.workers_per_gpu} is for GPUs, but this runs on a CPU: use --workers"
            )
        return [Seat(device="cpu", cores=share(cores, worker, workers)) for worker in range(workers)]
    if launch.workers is not None:
        raise SettingError(
            f"workers {launch.workers} is for CPUs, but the device is {device}: use --workers-per-gpu, choose "
            "GPUs with --gpus, or give --device cpu"
        )
    numbers = _numbers(launch.gpus, device, rank)
    nodes = gpu_nodes()
    near = {gpu: nodes[gpu] if gpu < len(nodes) else -1 for gpu in numbers}
    order = sorted(numbers, key=lambda gpu: (near[gpu], gpu))
    return [Seat(device=f"cuda:{gpu}", cores=share(cores, order.index(gpu), len(order))) for gpu in numbers]


def workers_per_gpu(settings: Settings, gflop: float, cores: int) -> int:
    """Worker processes for each GPU, where nobody says how many. cores: CPU cores for each GPU.

    gflop: cost of an image in the image encoder, 10**9 multiplications and additions. A guess, since nothing has been
    measured on a GPU: a worker hands on at most 24,000 images/s, as Python runs one thread at a time, and the encoder
    computes 200 TFLOP/s; each worker needs four cores to decode.
    """
    if settings.launch.workers_per_gpu is not None:
        return settings.launch.workers_per_gpu
    wanted = math.ceil(200_000 / gflop / _IMAGES_PER_S_OF_A_WORKER)
    return max(1, min(wanted, cores // 4, _MAX_WORKERS_PER_GPU))


def divided(seats: list[Seat], count: int) -> list[Seat]:
    """`count` seats in place of each one, with an equal share of its cores."""
    if count == 1:
        return seats
    return [
        Seat(device=seat.device, cores=share(list(seat.cores), worker, count), worker=worker + 1)
        for seat in seats
        for worker in range(count)
    ]


def _numbers(gpus: str | None, device: str, rank: Rank) -> list[int]:
    """The numbers of the GPUs to use, as CUDA counts the GPUs that it sees."""
    count = gpu_count()
    if count == 0:
        raise InputError(
            f"--{'gpus ' + gpus if gpus else 'device ' + device}: this machine has no NVIDIA GPU that can be used (no "
            f"driver, or CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r} hides it): use --device cpu"
        )
    if device.startswith("cuda:"):
        return [int(device.partition(":")[2])]
    if gpus not in (None, "all"):
        numbers = [int(number) for number in gpus.split(",")]
        wrong = [number for number in numbers if number >= count or numbers.count(number) > 1]
        if wrong:
            raise InputError(
                f"--gpus {gpus}: GPU {wrong[0]} does not exist or is named twice; CUDA sees {count} GPUs on this "
                f"machine, numbered from 0: name each of them at most once"
            )
        return numbers
    return list(range(count))[rank.local :: rank.local_world] or [rank.local % count]


def gpu_count(root: Path = _ROOT) -> int:
    """How many GPUs CUDA sees: those that CUDA_VISIBLE_DEVICES names, or all that have a device file."""
    if not hardware.has_gpu():
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        entries = [entry.strip() for entry in visible.split(",")]
        return next((at for at, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    # The Windows Subsystem for Linux has one device file for all GPUs.
    return len(list((root / "dev").glob("nvidia[0-9]*"))) or 1


def gpu_nodes(root: Path = _ROOT) -> list[int]:
    """The memory node of each GPU that CUDA sees, in CUDA's order; -1 if it is unknown."""
    gpus: list[tuple[str, str, int]] = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        facts = dict(re.findall(r"^(.+?):\s*(.*?)\s*$", hardware.text_of(folder / "information"), re.MULTILINE))
        minor = facts.get("Device Minor", "")
        if minor and (root / f"dev/nvidia{minor}").exists():
            node = hardware.text_of(root / f"sys/bus/pci/devices/{folder.name.lower()}/numa_node")
            gpus.append((facts.get("GPU UUID", ""), minor, int(node or -1)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [node for *_, node in gpus]
    by_name = {str(number): node for number, (*_, node) in enumerate(gpus)}
    by_name |= {uuid: node for uuid, _, node in gpus}
    return [by_name.get(entry.strip(), -1) for entry in visible.split(",")]


def cores_by_node(root: Path = _ROOT) -> list[int]:
    """The cores that this process may use, sorted so that neighbours share a physical core and a memory node."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    node_of = {
        core: int(folder.name.removeprefix("node"))
        for folder in (root / "sys/devices/system/node").glob("node[0-9]*")
        for core in _numbers_in(hardware.text_of(folder / "cpulist"))
    }

    def position(core: int) -> tuple[int, int, int]:
        siblings = _numbers_in(
            hardware.text_of(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        )
        return node_of.get(core, 0), min(siblings, default=core), core

    return sorted(usable, key=position)


def share(cores: list[int], worker: int, workers: int) -> tuple[int, ...]:
    """The `worker`-th of `workers` equal pieces of `cores`. A piece has at least one core; pieces may then overlap."""
    start = worker * len(cores) // workers
    return tuple(cores[start : max(start + 1, (worker + 1) * len(cores) // workers)])


def _numbers_in(text: str) -> list[int]:
    """The numbers in a list of the kernel's, such as `0-3,8`."""
    numbers: list[int] = []
    for first, last in re.findall(r"([0-9]+)(?:-([0-9]+))?", text):
        numbers += range(int(first), int(last or first) + 1)
    return numbers
