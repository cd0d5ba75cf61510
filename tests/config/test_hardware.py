"""Which devices and cores workers get: on this machine, and on copies of the kernel's files of larger ones."""

import os
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import from_flat, hardware
from clipbatch.errors import InputError
from clipbatch.workers import devices
from clipbatch.workers.devices import cores_by_node, gpu_count, gpu_nodes, seats
from clipbatch.workers.ranks import Rank
from tests.conftest import DEMO, Cli

CORES = sorted(os.sched_getaffinity(0))
PRESENT = hardware.has_gpu()


def machine(root: Path, nodes: dict[int, str], gpus: dict[str, tuple[int, int]], cores: int = 8) -> Path:
    """The kernel's files of a machine. nodes: node -> its cores; gpus: bus id -> (device minor, node)."""
    for node, listed in nodes.items():
        write(root / f"sys/devices/system/node/node{node}/cpulist", listed)
    for core in range(cores):  # hyper-threads: core n and n + 4 are one
        siblings = f"{core % (cores // 2)},{core % (cores // 2) + cores // 2}"
        write(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", siblings)
    for bus, (minor, node) in gpus.items():
        facts = f"Model: \t\t H200\nIRQ:   \t\t 12\nGPU UUID: \t GPU-{minor}\nDevice Minor: \t {minor}\n"
        write(root / f"proc/driver/nvidia/gpus/{bus}/information", facts)
        write(root / f"sys/bus/pci/devices/{bus.lower()}/numa_node", f"{node}\n")
        write(root / f"dev/nvidia{minor}", "")
    write(root / "dev/nvidiactl", "")
    return root


@pytest.mark.parametrize(
    ("visible", "device", "seen"),
    [(None, "cuda:3", "3"), ("", "cuda:1", "1"), ("5,2", "cuda:1", "2"), ("GPU-a,GPU-b", "cuda", "GPU-a")],
)
def test_a_worker_sees_only_its_own_gpu(
    visible: str | None, device: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # also so that its old value comes back after the test
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert hardware.hide_other_gpus(device) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    assert hardware.hide_other_gpus("cpu") == "cpu"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_cores_that_share_a_node_and_a_physical_core_are_neighbours(tmp_path: Path, eight_cores: None) -> None:
    root = machine(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, {})
    assert cores_by_node(root) == [0, 4, 1, 5, 2, 6, 3, 7]
    assert cores_by_node(tmp_path / "nothing") == list(range(8))


def test_each_core_of_this_process_goes_to_one_worker() -> None:
    assert sorted(cores_by_node()) == CORES
    settings = from_flat({"device": "cpu", "workers": 2})
    first, second = seats(settings, Rank())
    assert first.device == second.device == "cpu"
    if len(CORES) > 1:
        assert sorted(first.cores + second.cores) == CORES
        assert abs(len(first.cores) - len(second.cores)) <= 1
    assert all(len(seat.cores) == 1 for seat in seats(settings.replace(workers=len(CORES) + 3), Rank()))
    (alone,) = seats(settings.replace(workers=None), Rank())
    assert sorted(alone.cores) == CORES


@pytest.mark.parametrize(
    ("visible", "count", "nodes"),
    [
        (None, 4, [0, 0, 1, 1]),
        ("2,0", 2, [1, 0]),
        ("GPU-3", 1, [1]),
        ("1,-1,2", 1, [0]),
        ("MIG-1f", 1, [-1]),
    ],
)
def test_gpus_are_counted_as_cuda_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, nodes: list[int]
) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    buses = {f"0000:{bus}:00.0": (minor, minor // 2) for minor, bus in enumerate(("1A", "2B", "3C", "4D"))}
    root = machine(tmp_path, {}, buses)
    assert (gpu_count(root), gpu_nodes(root)[:count]) == (count, nodes)


def test_a_gpu_whose_device_file_is_kept_from_a_container_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    root = machine(tmp_path, {}, {"0000:1A:00.0": (0, 0), "0000:2B:00.0": (1, 1)})
    (root / "dev/nvidia0").unlink()
    assert (gpu_count(root), gpu_nodes(root)) == (1, [1])


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eight_cores: None) -> None:
    """Two of them near each of two nodes, but numbered across."""
    buses = {f"0000:{bus}:00.0": (minor, 1 - minor % 2) for minor, bus in enumerate(("1A", "2B", "3C", "4D"))}
    root = machine(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, buses)
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for function in (gpu_count, gpu_nodes, cores_by_node):
        monkeypatch.setattr(devices, function.__name__, lambda function=function: function(root))


@pytest.mark.parametrize(
    ("given", "rank", "expected"),
    [
        ({}, {}, {"cuda:0": (2, 6), "cuda:1": (0, 4), "cuda:2": (3, 7), "cuda:3": (1, 5)}),
        ({"gpus": "all"}, {"local": 1, "local_world": 2}, {"cuda:1": (0, 4, 1, 5), "cuda:3": (2, 6, 3, 7)}),
        ({"gpus": "0,1"}, {}, {"cuda:0": (2, 6, 3, 7), "cuda:1": (0, 4, 1, 5)}),
        ({"device": "cuda"}, {"local": 3, "local_world": 4}, {"cuda:3": (0, 4, 1, 5, 2, 6, 3, 7)}),
        ({"device": "cuda:2"}, {}, {"cuda:2": (0, 4, 1, 5, 2, 6, 3, 7)}),
        ({"device": "cpu"}, {}, {"cpu": (0, 4, 1, 5, 2, 6, 3, 7)}),
        ({}, {"local": 5, "local_world": 8}, {"cuda:1": (0, 4, 1, 5, 2, 6, 3, 7)}),
    ],
)
def test_each_gpu_has_one_worker_with_the_cores_near_it(
    four_gpus: None, given: dict[str, Any], rank: dict[str, int], expected: dict[str, tuple[int, ...]]
) -> None:
    assert {seat.device: seat.cores for seat in seats(from_flat(given), Rank(**rank))} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": "0,4"}, "--gpus 0,4: GPU 4 does not exist"),
        ({"gpus": "1,1"}, "--gpus 1,1"),
        ({"gpus": "all", "device": "cpu"}, "gpus all and device cpu contradict"),
        ({"gpus": "1", "device": "cuda:0"}, "gpus 1 and device cuda:0 contradict"),
        ({"workers": 2}, "workers 2 is for CPUs.*--gpus, or give --device cpu"),
        ({"gpus": "first"}, "gpus 'first' is not known: use all, or numbers"),
        ({"workers": 0}, "workers 0 is out of range"),
    ],
)
def test_devices_that_contradict_or_do_not_exist_are_refused(
    four_gpus: None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        seats(from_flat(settings), Rank())


@pytest.mark.skipif(PRESENT, reason="there is a GPU here")
@pytest.mark.parametrize(
    "arguments", [("--gpus", "all"), ("--gpus", "0,1"), ("--device", "cuda"), ("--device", "cuda:0")]
)
def test_without_a_gpu_asking_for_one_is_refused_before_anything_is_written(
    cli: Cli, photos: Path, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    error = cli("run", photos, *DEMO, *arguments, "--out", tmp_path / "out", code=3).stderr
    assert f"{' '.join(arguments)}: this machine has no NVIDIA GPU that can be used" in error
    assert "--device cpu" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
