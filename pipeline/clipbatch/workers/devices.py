"""Which devices this invocation uses, and which CPU cores the worker on each of them gets.

Everything is read from files of the kernel and of NVIDIA's driver; no library is loaded and no GPU is touched. Where a
file is not there (other systems, some containers), cores are divided without regard to what is near what.

Cores are put in the order of memory nodes (NUMA), then of physical cores, workers in the order of their GPU's node,
and each worker gets its share in one piece. So workers stay on one node, near their GPU, where the machine is as
regular as servers are, and on any other machine all cores are still used, each by as few workers as possible.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from clipbatch.config import Settings, hardware
from clipbatch.config.validation import SettingError
from clipbatch.errors import InputError
from clipbatch.workers.ranks import Rank

_ROOT = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place for one worker process."""

    # cpu or cuda:N.
    device: str
    # CPU cores that it may use, as the kernel numbers them.
    cores: tuple[int, ...]

    def __str__(self) -> str:
        return self.device


def seats(settings: Settings, rank: Rank) -> list[Seat]:
    """A seat for each worker of this process.

    rank: where several ranks share a machine, each takes its own of the GPUs.
    Raises: InputError where devices contradict one another or are not there.
    """
    launch, device = settings.launch, settings.model.device
    if launch.gpus is not None and device not in ("auto", "cuda"):
        raise SettingError(f"gpus {launch.gpus} and device {device} contradict one another: leave one of them out")
    cores = cores_by_node()
    if device == "cpu" or (device == "auto" and launch.gpus is None and not hardware.has_gpu()):
        workers = launch.workers or 1
        return [Seat(device="cpu", cores=share(cores, worker, workers)) for worker in range(workers)]
    if launch.workers is not None:
        raise SettingError(
            f"workers {launch.workers} is for CPUs, and the device is {device}, a GPU with one worker each: choose "
            "GPUs with --gpus, or say --device cpu"
        )
    numbers = _numbers(launch.gpus, device, rank)
    nodes = gpu_nodes()
    near = {gpu: nodes[gpu] if gpu < len(nodes) else -1 for gpu in numbers}
    order = sorted(numbers, key=lambda gpu: (near[gpu], gpu))
    return [Seat(device=f"cuda:{gpu}", cores=share(cores, order.index(gpu), len(order))) for gpu in numbers]


def _numbers(gpus: str | None, device: str, rank: Rank) -> list[int]:
    """The GPUs to use, as CUDA numbers those that it sees."""
    found = gpu_count()
    if found == 0:
        raise InputError(
            f"--{'gpus ' + gpus if gpus else 'device ' + device}: no NVIDIA GPU can be seen here (no driver, or "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r} hides them): use --device cpu"
        )
    if device.startswith("cuda:"):
        return [int(device.partition(":")[2])]
    if gpus not in (None, "all"):
        named = [int(number) for number in gpus.split(",")]
        wrong = [number for number in named if number >= found or named.count(number) > 1]
        if wrong:
            raise InputError(f"--gpus {gpus}: there is no GPU {wrong[0]} to give; CUDA sees {found}, from 0 on, here")
        return named
    return list(range(found))[rank.local :: rank.local_world] or [rank.local % found]


def gpu_count(root: Path = _ROOT) -> int:
    """GPUs that CUDA sees: those of CUDA_VISIBLE_DEVICES, else all whose device files are there."""
    if not hardware.has_gpu():
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        entries = [entry.strip() for entry in visible.split(",")]
        return next((at for at, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    return len(list((root / "dev").glob("nvidia[0-9]*"))) or 1  # Windows' subsystem has one file for all


def gpu_nodes(root: Path = _ROOT) -> list[int]:
    """The memory node of each GPU that CUDA sees, in its order; -1 where it is not known."""
    found: list[tuple[str, str, int]] = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        facts = dict(re.findall(r"^(.+?):\s*(.*?)\s*$", hardware.text_of(folder / "information"), re.MULTILINE))
        minor = facts.get("Device Minor", "")
        if minor and (root / f"dev/nvidia{minor}").exists():
            node = hardware.text_of(root / f"sys/bus/pci/devices/{folder.name.lower()}/numa_node")
            found.append((facts.get("GPU UUID", ""), minor, int(node or -1)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [node for *_, node in found]
    by_name = {str(number): node for number, (*_, node) in enumerate(found)}
    by_name |= {uuid: node for uuid, _, node in found}
    return [by_name.get(entry.strip(), -1) for entry in visible.split(",")]


def cores_by_node(root: Path = _ROOT) -> list[int]:
    """The cores that this process may use; neighbours share a physical core, and a memory node."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    node_of = {
        core: int(folder.name.removeprefix("node"))
        for folder in (root / "sys/devices/system/node").glob("node[0-9]*")
        for core in _numbers_in(hardware.text_of(folder / "cpulist"))
    }

    def place(core: int) -> tuple[int, int, int]:
        siblings = _numbers_in(
            hardware.text_of(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        )
        return node_of.get(core, 0), min(siblings, default=core), core

    return sorted(usable, key=place)


def share(cores: list[int], worker: int, workers: int) -> tuple[int, ...]:
    """The `worker`-th of `workers` equal pieces of `cores`; at least one core, where there are fewer than workers."""
    start = worker * len(cores) // workers
    return tuple(cores[start : max(start + 1, (worker + 1) * len(cores) // workers)])


def _numbers_in(text: str) -> list[int]:
    """The kernel's `0-3,8`."""
    found: list[int] = []
    for first, last in re.findall(r"([0-9]+)(?:-([0-9]+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found
