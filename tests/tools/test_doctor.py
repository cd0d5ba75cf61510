"""The doctor: on this machine, with libraries that crash, and with copies of kernel files of other machines."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import hardware
from clipbatch.errors import InputError
from clipbatch.tools.doctor import checks, machine
from tests.conftest import DEMO, Cli

H200 = {"name": "NVIDIA H200", "capability": [9, 0], "memory_gib": 140, "fp8": True}
NAMES = [
    "driver",
    "torch",
    "DALI",
    "JPEG engines",
    "precision",
    "cores",
    "compiler",
    "shared memory",
    "disk",
    "weights",
]


def test_this_machine_passes_for_the_embedded_model(cli: Cli, photos: Path) -> None:
    found = json.loads(cli("doctor", photos, *DEMO[2:], "--json").stdout)
    assert [one["name"] for one in found if not one["name"].startswith("GPU ")] == NAMES
    by_name = {one["name"]: one for one in found}
    assert all(one["level"] == "ok" for one in found if one["name"] not in ("driver", "cores", "disk", "precision"))
    assert by_name["precision"]["level"] == ("ok" if hardware.has_gpu() or hardware.has_fast_bf16() else "warning")
    assert all(bool(one["remedy"]) == (one["level"] != "ok") for one in found)
    assert by_name["driver"]["level"] == ("ok" if hardware.has_gpu() else "warning")
    assert "MB/s" in by_name["disk"]["text"]
    assert "decodes" in by_name["DALI"]["text"]


def test_a_library_that_crashes_is_a_failure_with_a_remedy_and_other_checks_go_on(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    made = cli("doctor", tmp_path, *DEMO[2:], code=5, env={"PYTHONPATH": path})
    lines = made.stdout.splitlines()
    torch = next(number for number, line in enumerate(lines) if line.startswith("failure  torch"))
    assert lines[torch].endswith("the process was ended by SIGSEGV")
    assert lines[torch + 1].strip().startswith("-> install")
    assert any(line.startswith("ok       shared memory") for line in lines)
    assert made.stderr.startswith("clipbatch: ")
    assert "torch" in made.stderr
    assert made.stderr.count("\n") == 1


def test_unreachable_weights_are_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, pretrained = "ViT-B-32", "laion2b_s34b_b79k"
    found = checks.judge_weights(checks.ask("weights_are", model, pretrained), model, pretrained)
    assert found.level == "failure"
    assert "not cached here, and the hub does not answer" in found.text
    assert "--pretrained FILE" in found.remedy


def test_an_unknown_model_is_refused_before_any_check(cli: Cli) -> None:
    made = cli("doctor", "--model", "ViT-B32", code=3)
    assert made.stdout == ""
    assert "Did you mean ViT-B-32" in made.stderr


@pytest.mark.parametrize(
    ("driver", "cuda", "gpus", "level", "said"),
    [
        (13000, "13.2", [H200], "ok", ""),
        (13020, "13.0", [H200], "ok", ""),
        (12080, "13.2", [], "failure", "a driver that supports CUDA 13 (R580 or later), or a torch built for CUDA 12"),
        (12020, "13.2", [], "failure", "pip install 'torch<2.11' 'torchvision<0.26'"),
        (12020, "12.8", [H200], "ok", ""),  # minor versions need no newer driver
        (11080, "12.8", [], "failure", "CUDA 12 (R525 or later)"),
        (13000, None, [], "failure", "built for CUDA"),
        (13000, "13.2", [], "failure", "no reason given"),
    ],
)
def test_the_driver_has_to_support_torchs_cuda(
    monkeypatch: pytest.MonkeyPatch, driver: int, cuda: str | None, gpus: list[dict[str, Any]], level: str, said: str
) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    answer = {"version": "2.15.0", "cuda": cuda, "driver_cuda": driver, "gpus": gpus}
    first, *others = checks.judge_torch(answer)
    assert first.level == level
    assert said in first.remedy
    assert [one.name for one in others] == ["GPU 0"] * len(gpus)


def test_a_gpu_that_torch_has_no_code_for_gets_the_line_of_one_that_has(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "AcceleratorError: CUDA error: no kernel image is available for execution on the device"
    (found,) = checks.judge_torch({"error": said})
    assert (found.level, found.text) == ("failure", said)
    assert "compute capability 7.5 or later" in found.remedy
    assert "pip install 'torch<2.11'" in found.remedy


def test_the_page_on_installing_has_the_line_that_the_doctor_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    (found,) = checks.judge_torch({"version": "2.15.0", "cuda": "13.2", "driver_cuda": 12080, "gpus": []})
    line = found.remedy.rpartition(": ")[2]
    assert line.startswith("pip install ")
    page = (Path(__file__).parents[2] / "docs" / "guides" / "installing.md").read_text()
    assert line in page


@pytest.mark.parametrize(
    ("answer", "capability", "level"),
    [
        ({"answer": True, "engines": 7}, [9, 0], "ok"),
        ({"answer": False, "reason": "the driver's library is not here"}, [9, 0], "warning"),
        ({"error": "RuntimeError: nvimgcodec failure"}, [8, 0], "warning"),
        ({"answer": False}, [8, 6], "ok"),
    ],
)
def test_gpus_with_jpeg_engines_have_to_decode_with_them(
    answer: dict[str, Any], capability: list[int], level: str
) -> None:
    found = checks.judge_engines(answer, H200 | {"capability": capability})
    assert found.level == level
    assert ("video" in found.remedy) == (level == "warning")
    if level == "warning":
        assert answer.get("error", answer.get("reason")) in found.text
    elif answer["answer"]:
        assert found.text == "7 decode"


def test_a_gpu_on_the_bus_without_a_driver_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.driver(tmp_path).level == "warning"
    card = tmp_path / "sys/bus/pci/devices/0000:1a:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    found = machine.driver(tmp_path)
    assert found.level == "failure"
    assert "--gpus all" in found.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset CUDA_VISIBLE_DEVICES" in machine.driver(tmp_path).remedy


def test_the_disk_rate_counts_only_bytes_that_were_read(tmp_path: Path) -> None:
    assert machine.disk(str(tmp_path), 1).level == "warning"
    assert "not measured" in machine.disk(str(tmp_path / "gone"), 1).text
    assert "not measured" in machine.disk("s3://bucket/photos", 1).text
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(bytes(2**20))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "in 1 files" in machine.disk(str(tmp_path), 1).text
    assert "in 1 files" in machine.disk(str(tmp_path / "sub" / "a.jpg"), 1).text


def test_a_disk_that_is_slower_than_labelling_gets_a_warning(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(20_000))
    fast = machine.disk(str(tmp_path), 0.01)
    assert (fast.level, "labelling" in fast.text) == ("ok", False)
    slow = machine.disk(str(tmp_path), 1e9)
    assert slow.level == "warning"
    assert "labelling takes up to 20000000 MB/s of such files" in slow.text
    assert "local disk" in slow.remedy


def test_a_cpu_without_bf16_gets_a_warning_with_the_rate_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, level in ((True, "ok"), (False, "warning")):
        monkeypatch.setattr(hardware, "has_fast_bf16", lambda fast=fast: fast)
        found = checks.judge_precision([])
        assert (found.level, "5.9 images/s a core with ViT-B-32, where bf16 does 30" in found.text) == (level, not fast)


def test_examine_refuses_an_unknown_model() -> None:
    with pytest.raises(InputError, match="ViT-B-32"):
        next(iter(checks.examine(".", "ViT-B32", None)))
