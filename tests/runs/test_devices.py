"""A plan says for which device it was made, and a run on the other kind says at once what to expect."""

import json
from pathlib import Path

import pytest

from clipbatch.config import auto, from_flat, hardware, models
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs.warnings import device_remark
from tests.conftest import DEMO, Cli, rewrite, rows
from tests.support.corpus import make_folder

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, 24, seed=4, bad_fraction=0)
    return folder


def test_a_login_node_without_a_gpu_plans_for_gpus_and_a_cpu_that_runs_it_says_what_to_expect(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("plan", folder, *DEMO, "--device", "cuda", "--out", out)
    assert json.loads(warm(*given, "--json", env=NO_GPU).stdout)["device"] == "cuda"
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert [settings[name] for name in ("precision", "decoder", "batch_size")] == ["fp16", "dali", 256]
    said = warm("run", "--out", out, env=NO_GPU).stderr
    assert "this run was planned for a GPU (fp16, batches of 256, decoder dali) and runs on a CPU: expect about" in said
    assert f"photographs/s on {hardware.cores()} cores" in said
    assert rows(out)["status"].to_pylist() == ["ok"] * 24
    assert "planned for" not in warm("run", "--out", out, env=NO_GPU).stderr  # nothing is left to do
    assert "NVIDIA GPU" in warm("run", "--out", out, "--device", "cuda", code=3, env=NO_GPU).stderr


def test_a_plan_for_a_cpu_says_so_and_what_bounds_it_on_a_gpu(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = warm("plan", folder, *DEMO, "--precision", "fp32", "--out", out, env=NO_GPU).stdout
    assert "device         cpu (to plan for GPUs: --device cuda)" in said
    assert "planned for" not in warm("run", "--out", out, env=NO_GPU).stderr
    plan = RunDir(out).plan()
    assert device_remark(plan, from_flat({"device": "cpu"})) is None
    for on_gpu in ({"device": "cuda:1"}, {"gpus": "all"}):
        remark = device_remark(plan, from_flat(on_gpu), cores=16)
        assert remark is not None
        assert "planned for a CPU (fp32, batches of 32, decoder torchvision) and runs on a GPU" in remark
        assert "16 cores at most about 6400 photographs/s" in remark
        assert "--device cuda" in remark


def test_the_rate_to_expect_is_the_one_that_shards_are_cut_by() -> None:
    # Runs with ViT-B-32 on 2 cores, measured: 2026-11-23-cpu-speed.md, and 2026-11-28-cpu-speed.md without bf16.
    for precision, measured in (("bf16", 57), ("fp32", 11)):
        assert auto.cpu_rate(models.gflop("ViT-B-32"), precision, 2) == pytest.approx(measured, rel=0.1)
    assert auto.cpu_rate(models.gflop("clipbatch-demo"), "bf16", 2) == pytest.approx(773, rel=0.1)
    rows_of_a_minute = auto.one_minute_shard_size(False, 8.8, "bf16", 32)
    assert 30 < rows_of_a_minute / auto.cpu_rate(8.8, "bf16", hardware.cores()) <= 60


def test_runs_of_older_versions_do_not_say(warm: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    warm("plan", folder, *DEMO, "--device", "cuda", "--out", out)
    rewrite(out / "run.json", lambda plan: plan.update(device="tpu"))
    with pytest.raises(InputError, match="device is 'tpu', not cpu or cuda"):
        RunDir(out).plan()
    rewrite(out / "run.json", lambda plan: plan.pop("device"))
    assert RunDir(out).plan().device is None
    assert device_remark(RunDir(out).plan(), from_flat({"device": "cpu"})) is None
    assert "device         not recorded" in warm("plan", "--out", out).stdout
