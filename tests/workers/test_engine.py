"""Which engine a run uses, and what a worker requests from a Ray cluster. tests/ray tests the Ray engine itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from clipbatch.config import from_flat
from clipbatch.errors import InputError
from clipbatch.runs import slurm
from clipbatch.runs.run import engine
from clipbatch.runs.slurm_scripts import SlurmJob
from clipbatch.workers.ranks import Rank
from clipbatch.workers.ray.cluster import default_cores, slots
from tests.conftest import DEMO, rows
from tests.support.corpus import make_folder

CPU_NODES = [{"CPU": 16.0, "memory": 2.0**36}, {"CPU": 64.0}, {"memory": 2.0**36}, {"CPU": 0.5}]
GPU_NODES = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 96.0, "GPU": 8.0}, {"CPU": 64.0}]


def test_a_worker_requests_all_cores_of_a_node_or_a_gpu_with_its_share_of_cores() -> None:
    assert default_cores(CPU_NODES, gpus=False) == 16
    assert [slots(node, 16, gpus=False) for node in CPU_NODES] == [1, 4, 0, 0]
    assert default_cores(GPU_NODES, gpus=True) == 12
    assert [slots(node, 12, gpus=True) for node in GPU_NODES] == [1, 8, 0]
    assert [slots(node, 32, gpus=True) for node in GPU_NODES] == [0, 3, 0]
    assert default_cores([{"GPU": 4.0}], gpus=True) == 0
    assert slots({"GPU": 4.0}, 0, gpus=True) == 4
    assert default_cores([], gpus=True) == default_cores([], gpus=False) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "rey"}, "engine 'rey' is not known: use one of local, ray. Did you mean ray?"),
        (
            {"engine": "ray", "gpus": "0,1"},
            "--engine ray uses those of the cluster: leave it out; --workers sets how many",
        ),
        ({"engine": "ray", "device": "cuda:1"}, "Ray chooses the GPU of each worker: give --device cuda"),
        ({"cpus_per_worker": 4}, "--cpus-per-worker 4 is for --engine ray"),
    ],
)
def test_settings_that_contradict_the_engine_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        engine(from_flat(settings), Rank())
    assert said in str(error.value)


def test_submit_refuses_engine_ray(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--engine ray needs no Slurm"):
        slurm.submit(from_flat({"engine": "ray"}), tmp_path / "out", SlurmJob(array="2"))


def test_ray_is_imported_only_for_engine_ray_and_is_required_then(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 8, seed=1, bad_fraction=0)
    without = "import sys; sys.modules['ray'] = None; from clipbatch.cli import main; main()"  # as if not installed
    command = [sys.executable, "-c", without, "run", tmp_path / "in", *DEMO, "--out", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    assert rows(tmp_path / "out").num_rows == 8
    made = subprocess.run([*command, "--engine", "ray"], capture_output=True, text=True, check=False)
    assert made.returncode == 3
    remedy = "--engine ray needs Ray, which is not installed here: pip install 'clipbatch[ray]'"
    assert made.stderr == f"clipbatch: {remedy}\n"
