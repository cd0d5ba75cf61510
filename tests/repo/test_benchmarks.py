"""The benchmark scripts at the smallest scale, so that none of them rots. Their figures mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def bench(name: str, *arguments: object) -> dict[str, Any]:
    """Run a script; returns its last line."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / name, *map(str, arguments)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stderr
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


def test_speed(photos: Path, tmp_path: Path) -> None:
    arguments = ("--model", "clipbatch-demo", "--rounds", 1, "--images", 32)
    found = bench("speed.py", photos, *arguments, "--report", tmp_path / "speed.md")
    (model,) = found["models"]
    assert set(model["rates"]) == {"decode", "encode", "run", "peer decode", "peer run", "ceiling"}
    assert all(rate["median"] > 0 for rate in model["rates"].values())
    assert "clipbatch-demo" in (tmp_path / "speed.md").read_text()


def test_steps_name_every_change_and_what_was_not_measured(photos: Path, tmp_path: Path) -> None:
    few = ("--rounds", 1, "--images", 16, "--batch", 8, "--singles", 2)
    found = bench("steps.py", photos, "--models", "clipbatch-demo", *few, "--report", tmp_path / "steps.md")
    steps = found["s_per_image"]["clipbatch-demo"]
    assert len(steps) == 7
    assert all(seconds["median"] > 0 for seconds in steps.values())
    assert steps["a process for each image"]["median"] > steps["labels encoded once"]["median"]
    last = [
        line for line in (tmp_path / "steps.md").read_text().splitlines() if line.startswith("| decoded on the GPU")
    ]
    assert "not measured" in last[0]


def test_preprocess(photos: Path, tmp_path: Path) -> None:
    found = bench("preprocess.py", photos, "--counts", 4, "--rounds", 1, "--report", tmp_path / "preprocess.md")
    assert set(found["seconds"]) == {"4 photographs", "4 32 x 32 pixels"}
    for times in found["seconds"].values():
        assert set(times) == {"CLIPProcessor, CPU", "torchvision, CPU", "clipbatch", "clipbatch, DALI"}
    assert "torchvision, GPU" in (tmp_path / "preprocess.md").read_text()


def test_the_gpu_check_runs_every_section_on_the_cpu(photos: Path, tmp_path: Path) -> None:
    report = tmp_path / "check.md"
    facts = bench("gpu_check.py", photos, "--device", "cpu", "--small", "--report", report)["facts"]
    probes = [name for name in facts if name.startswith("crash probe")]
    failed = {name: found["error"] for name, found in facts.items() if "error" in found and "without" not in name}
    assert failed == {}
    assert len(probes) == 2
    assert facts["crash probe 64, with the pre-check"]["outcome"] == "63 decoded, 1 rejected of 64"
    assert facts["ceilings"]["matmul TFLOP/s"] > 0
    assert {f"{what} images/s" for what in ("read", "decode", "encode", "run")} <= set(facts["clipbatch-demo"])
    assert facts["parity"]["clipbatch-demo cosine, mean"] >= 0.998
    assert len([name for name in facts if name.startswith("peer ") and facts[name]["images/s"] > 0]) == 6
    assert (tmp_path / "check.png").stat().st_size > 10_000
    text = report.read_text()
    assert "| tests/gpu" in text
    assert "not measured" in text
    assert "error" not in facts["tests/gpu"]


def test_the_gpu_check_has_sections_for_every_model_at_full_scale(photos: Path) -> None:
    code = """
import argparse, pathlib, sys
import gpu_check
given = argparse.Namespace(folder=pathlib.Path(sys.argv[1]), device="cuda:0", small=False)
print(*(section.name for section in gpu_check.plan(gpu_check.scale_of(given))), sep="\\n")
"""
    made = subprocess.run(
        [sys.executable, "-c", code, photos], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert {"ceilings", "ViT-B-32", "ViT-B-16", "ViT-L-14", "hw_decoder_load"} < set(made.stdout.splitlines())


def test_what_keeping_freed_memory_is_worth_is_measured_both_ways(photos: Path, tmp_path: Path) -> None:
    few = ("--models", "clipbatch-demo", "--images", 64, "--rounds", 1, "--report", tmp_path / "heap.md")
    ways = bench("heap.py", photos, *few)["models"]["clipbatch-demo"]
    assert [len(figures) for figures in ways.values()] == [1, 1]
    assert all(figure > 0 for (figures,) in ways.values() for figure in figures.values())


def test_the_lock_is_seen_held_in_the_stages_of_a_run(photos: Path, tmp_path: Path) -> None:
    held = bench("lock.py", photos, "--images", 1024, "--report", tmp_path / "lock.md")["held_us"]
    assert held["decode"] > 0
    assert held["encode"] > 0
    assert "images/s at most" in (tmp_path / "lock.md").read_text()


def test_kills_leave_no_trace_in_what_is_compacted(tmp_path: Path) -> None:
    few = ("--kills", 1, "--only", "compact", "--report", tmp_path / "kills.md")
    found = bench("kills.py", *few)["commands"]["compact"]
    assert (found["kills"], found["wrong"]) == (1, [])
    assert "| compact " in (tmp_path / "kills.md").read_text()


def test_bytes_a_row_are_measured_in_every_layout(photos: Path, tmp_path: Path) -> None:
    few = ("--images", 256, "--vit-images", 0, "--labels", 10, "--names", 100)
    found = bench("sizes.py", "--photos", photos, *few, "--report", tmp_path / "sizes.md")
    (sizes,) = [figures for name, figures in found.items() if name.startswith("embedded model")]
    raw = 2 * 96  # an embedding, which hardly compresses
    assert sizes["list and embedding"]["10"] - sizes["list"]["10"] == pytest.approx(raw, rel=0.2)
    assert "| list" in (tmp_path / "sizes.md").read_text()
