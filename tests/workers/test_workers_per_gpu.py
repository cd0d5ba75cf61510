"""Several workers on one device: the CPU stands in for a GPU."""

import json
from pathlib import Path

from tests.conftest import DEMO, Cli
from tests.support.injected import injected

# One device with all cores, which the engine divides as it divides a GPU.
ONE_DEVICE = """
def seats(settings, rank):
    return [Seat(device="cpu", cores=share(cores_by_node(), 0, 1))]
"""
# A worker begins when all are loaded: or else one might do all of the work before.
TOGETHER = """
import os, pathlib, sys, time
protect_now = protect
def protect(run, plan):
    if "clipbatch.stages.pipeline" in sys.modules:
        folder, until = pathlib.Path(os.environ["LOADED"]), time.monotonic() + 120
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < int(os.environ["WORKERS"]) and time.monotonic() < until:
            time.sleep(0.01)
    protect_now(run, plan)
"""


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "parts").iterdir())}


def test_two_workers_on_a_device_write_the_bytes_of_one(cli: Cli, photos: Path, tmp_path: Path) -> None:
    env = injected(tmp_path / "device", {"clipbatch.workers.devices": ONE_DEVICE, "clipbatch.rundir.damage": TOGETHER})
    options = (*DEMO, "--device", "cpu", "--decoder", "dali", "--precision", "fp32", "--batch-size", 8)
    options += ("--shard-size", 8, "--limit", 64)
    for count in (1, 2):
        out, loaded = tmp_path / f"of-{count}", tmp_path / f"loaded-{count}"
        loaded.mkdir()
        more = {"LOADED": str(loaded), "WORKERS": str(count)}
        cli("run", photos, *options, "--workers-per-gpu", count, "--out", out, env=env | more)
        workers = json.loads((out / "report.json").read_text())["this_run"]["workers"]
        assert len(workers) == count
    assert parts(tmp_path / "of-1") == parts(tmp_path / "of-2")
    assert len(parts(tmp_path / "of-2")) == 8
