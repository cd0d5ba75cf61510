"""The benchmark scripts at the smallest scale, so that none of them rots. Their figures mean nothing here."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repo.test_wheel import closure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNTING = {"flips", "kills", "nights", "sizes", "storms"}
"""Scripts that count bytes or faults: nothing in them is timed, and they parse their own options."""


def bench(name: str, *arguments: object) -> dict[str, Any]:
    """Run a script; returns its last line."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_every_script_says_what_it_measures_and_what_it_expects() -> None:
    code = """
import importlib, json, pathlib
scripts = {}
for path in sorted(pathlib.Path().glob("*.py")):
    module = importlib.import_module(path.stem)
    many = getattr(module, "BENCHMARKS", {"": module.BENCHMARK} if hasattr(module, "BENCHMARK") else {})
    scripts[path.stem] = {name: [one.title, one.expected] for name, one in many.items()}
print(json.dumps(scripts))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    scripts = json.loads(done.stdout)
    assert set(scripts["speed"]) == {"run", "peers", "steps", "preprocess"}
    assert set(scripts["overheads"]) == {"lock", "heap", "supervision", "workers"}
    assert set(scripts["formats"]) == {"archives", "tables", "remote"}
    assert set(scripts["run_directory"]) == {"plan", "resume", "write", "report", "rescore"}
    assert all(title and expected for many in scripts.values() for title, expected in many.values())
    text = {path.stem: path.read_text() for path in BENCHMARKS.glob("*.py")}
    runnable = {name for name, code in text.items() if 'if __name__ == "__main__"' in code}
    assert runnable - COUNTING == {name for name, many in scripts.items() if many}


def test_speed(photos: Path, tmp_path: Path) -> None:
    arguments = ("--model", "clipbatch-demo", "--rounds", 1, "--images", 32)
    result = bench("speed.py", "run", photos, *arguments, "--report", tmp_path / "speed.md")
    (model,) = result["models"]
    assert set(model["rates"]) == {"decode", "encode", "run", "peer decode", "peer run", "ceiling"}
    assert all(rate["median"] > 0 for rate in model["rates"].values())
    rates = {name: rate["median"] for name, rate in model["rates"].items()}
    assert rates["ceiling"] == pytest.approx(1 / (1 / rates["decode"] + 1 / rates["encode"]), rel=1e-3)
    text = (tmp_path / "speed.md").read_text()
    assert text.startswith("# Speed on the CPU, 20")
    assert result["machine"]["host"] in text
    assert result["machine"]["versions"]["torch"] in text
    assert "clipbatch-demo" in text


def test_ranks_that_help_each_other_lose_little_of_their_time_in_a_simulation(tmp_path: Path) -> None:
    result = bench("scaling.py", "ranks", "--seeds", 1, "--report", tmp_path / "balance.md")
    kept = {ranks: [result[ranks][how]["median"] for how in ("fixed parts", "helping")] for ranks in ("64", "512")}
    assert kept["64"][0] < 0.9 < 0.97 < kept["64"][1]
    assert kept["512"][0] < 0.6 < 0.86 < kept["512"][1]
    assert "shards done twice" in (tmp_path / "balance.md").read_text()


def test_steps_name_every_change_and_what_was_not_measured(photos: Path, tmp_path: Path) -> None:
    few = ("--rounds", 1, "--images", 16, "--batch", 8, "--singles", 2, "--report", tmp_path / "steps.md")
    steps = bench("speed.py", "steps", photos, "--models", "clipbatch-demo", *few)["s_per_image"]["clipbatch-demo"]
    assert len(steps) == 7
    assert all(seconds["median"] > 0 for seconds in steps.values())
    assert steps["a process for each image"]["median"] > steps["labels encoded once"]["median"]
    lines = (tmp_path / "steps.md").read_text().splitlines()
    assert ["not measured" in line for line in lines if line.startswith("| decoded on the GPU")] == [True]


def test_preprocess(photos: Path, tmp_path: Path) -> None:
    few = ("--counts", 4, "--rounds", 1, "--report", tmp_path / "preprocess.md")
    seconds = bench("speed.py", "preprocess", photos, *few)["seconds"]
    assert set(seconds) == {"4 photographs", "4 32 x 32 pixels"}
    for times in seconds.values():
        assert set(times) == {"CLIPProcessor, CPU", "torchvision, CPU", "clipbatch", "clipbatch, DALI"}
    assert "torchvision, GPU" in (tmp_path / "preprocess.md").read_text()


def test_images_in_tables_and_from_far_away_are_all_read(tmp_path: Path) -> None:
    few = ("--rows", 150, "--bytes", 2000, "--latency", 0.001, "--rounds", 1, "--report", tmp_path / "tables.md")
    rates = bench("formats.py", "tables", *few)["rates"]
    forms = {"files", "groups of 100", "one group", "files, web", "table, web", "bare pyarrow"}
    assert {name: set(rate) for name, rate in rates.items()} == {"per s": forms, "per CPU s": forms}


def test_writing_parts_beside_pyarrow(tmp_path: Path) -> None:
    few = ("--rows", 512, "--labels", 20, "--rounds", 2, "--report", tmp_path / "write.md")
    result = bench("run_directory.py", "write", *few)
    (ratio,) = result["wall"].values()
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert "bytes a row" in (tmp_path / "write.md").read_text()


def test_the_gpu_check_runs_every_section_on_the_cpu(photos: Path, tmp_path: Path) -> None:
    report = tmp_path / "check.md"
    result = bench("gpu_check.py", photos, "--device", "cpu", "--small", "--minutes", 14, "--report", report)
    facts = result["facts"]
    failed = {name: fact["error"] for name, fact in facts.items() if "error" in fact and "without" not in name}
    assert failed == {}
    assert result["left out"] == []
    assert facts["one JPEG"]["CPU, off Pillow's of 255"].startswith("0.")
    assert facts["first contact"]["status"] == "ok 16"
    assert facts["crash probe 64, with the pre-check"]["outcome"] == "63 decoded, 1 rejected of 64"
    assert facts["JPEG engines"]["CPU images/s"] > 0
    assert facts["ceilings"]["matmul TFLOP/s"] > 0
    assert facts["encoding alone"]["clipbatch-demo images/s"] > 0
    assert {f"{what} images/s" for what in ("read", "decode", "encode", "run")} <= set(facts["clipbatch-demo"])
    assert facts["parity"]["clipbatch-demo cosine, mean"] >= 0.998
    assert len([name for name in facts if name.startswith("peer ") and facts[name]["images/s"] > 0]) == 6
    assert facts["TensorRT, clipbatch-demo"] == {"outcome": "not measured: it needs a GPU"}
    assert (tmp_path / "check.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "check.json").read_text())["facts"] == facts
    text = report.read_text()
    assert "| tests/gpu" in text
    assert "not measured" in text


def test_a_gpu_check_without_time_names_what_it_left_out(photos: Path, tmp_path: Path) -> None:
    report = tmp_path / "check.md"
    result = bench("gpu_check.py", photos, "--device", "cpu", "--small", "--minutes", 0.25, "--report", report)
    assert result["left out"] == list(result["facts"])
    assert "Left out, as `--minutes 0.25` were over: one JPEG; first contact; crash probe 64" in report.read_text()
    assert set(json.loads((tmp_path / "check.json").read_text())["seconds"]) == set(result["facts"])


def test_the_gpu_check_begins_with_what_tells_most_and_counts_the_tests_of_the_gpu(
    photos: Path, tmp_path: Path
) -> None:
    code = """
import argparse, json, pathlib, sys
import gpu_check
given = argparse.Namespace(folder=pathlib.Path(sys.argv[1]), device="cuda:0", small=False)
scale, facts = gpu_check.scale_of(given, pathlib.Path(sys.argv[2])), {}
gpu_check.sections.tests(scale, facts.__setitem__, scale.scratch)
print(json.dumps([[section.name for section in gpu_check.plan(scale)], facts]))
"""
    (tmp_path / "test_some.py").write_text("""
import pytest
@pytest.mark.parametrize("word", ["a b", "c"])
def test_good(word): pass
def test_bad(): assert 0
def test_left(): pytest.skip()
""")
    done = subprocess.run(
        [sys.executable, "-c", code, photos, tmp_path], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    names, facts = json.loads(done.stdout)
    crash = ["crash probe 256, with the pre-check", "crash probe 256, without"]
    decoding = ["JPEG engines", "hw_decoder_load", "decoding alone"]
    whole = ["ceilings", "encoding alone", "ViT-B-32", "ViT-B-16", "ViT-L-14", "tests/gpu"]
    first = ["one JPEG", "first contact", *crash, *decoding, *whole, "peer open_clip, ViT-B-32", "parity"]
    assert names[: len(first)] == first
    assert facts["passed"] == 2
    assert facts["not passed"] == "test_some.py::test_bad FAILED; test_some.py::test_left SKIPPED"
    assert facts["outcome"].strip("= ").startswith("1 failed, 2 passed, 1 skipped")


def test_what_a_gpu_machine_without_a_network_has_to_be_brought_is_listed() -> None:
    text = (BENCHMARKS / "gpu_requirements.txt").read_text().splitlines()
    there = [word for line in text if line.startswith("#     ") for word in line[1:].split()]
    brought = {canonicalize_name(Requirement(line).name): line for line in text if not line.startswith("#")}
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    missing = closure(project["dependencies"]) - closure(there) - set(brought)
    assert missing == {"wheel"}  # astunparse names it, and imports nothing of it
    pins = (BENCHMARKS.parent / "constraints.txt").read_text().splitlines()
    assert [line for line in brought.values() if line not in pins] == []


def test_what_keeping_freed_memory_is_worth_is_measured_both_ways(photos: Path, tmp_path: Path) -> None:
    few = ("--models", "clipbatch-demo", "--images", 64, "--rounds", 1, "--report", tmp_path / "heap.md")
    ways = bench("overheads.py", "heap", photos, *few)["models"]["clipbatch-demo"]
    for name in ("images/s", "CPU ms an image", "peak MiB"):
        assert [spread["median"] > 0 for spread in ways[name].values()] == [True, True]


def test_the_lock_is_seen_held_in_the_stages_of_a_run(photos: Path, tmp_path: Path) -> None:
    few = ("--images", 1024, "--rounds", 1, "--report", tmp_path / "lock.md")
    result = bench("overheads.py", "lock", photos, *few)
    held, cpu = result["held_us"], result["cpu_us"]
    assert set(held) == {"list", "read", "decode", "score", "write", "sum", "encode"}
    assert held["sum"]["median"] > 0  # a few looks in so short a run, so one stage alone may have none
    assert set(cpu) == {"list, read", "decode", "score", "write", "sum"}
    assert cpu["sum"]["median"] > 0  # a stage may have done all its work before the part of the run that counts
    assert "By that, one process can hand on" in (tmp_path / "lock.md").read_text()


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


def test_evaluation_is_timed_and_exact(tmp_path: Path) -> None:
    result = bench("evaluation.py", "speed", "--rows", 2000, "--labels", 20)
    assert result["runs"][0]["rows"] == 2000
    assert 0.3 < result["runs"][0]["accuracy"] < 1
    assert result["average_precision_off"] < 1e-3


def test_captions_are_compared_and_timed(photos: Path, tmp_path: Path) -> None:
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))[:4] * 10):
        target = tmp_path / "cifar" / "test" / ("cat", "dog")[number % 2] / f"{number:02}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(photo.resolve())
    few = ("--cifar", tmp_path / "cifar", "--pairs", 40, "--models", "clipbatch-demo")
    pairs = bench("captions.py", "pairs", *few, "--report", tmp_path / "pairs.md")["clipbatch-demo"]
    assert (pairs["compared"], pairs["null"], pairs["same_bytes"]) == (38, 2, True)
    assert pairs["largest"] <= 1e-5
    few = ("--model", "clipbatch-demo", "--images", 32, "--rounds", 1, "--report", tmp_path / "speed.md")
    assert bench("captions.py", "speed", photos, *few)["with captions / without captions"]["median"] > 0
    few = ("--images", 20, "--rounds", 1, "--report", tmp_path / "sidecars.md")
    assert bench("captions.py", "sidecars", *few)["with sidecars"]["median"] > 0
    assert "Extrapolated, not measured" in (tmp_path / "sidecars.md").read_text()


def test_an_estimate_is_compared_with_its_run(photos: Path) -> None:
    result = bench("estimates.py", photos, "--rows", 40, "--rounds", 1, "--seconds", 2, "--model", "clipbatch-demo")
    assert result["rounds"][0]["ratio"] > 0


def test_nights_of_every_kind_leave_nothing_wrong(tmp_path: Path) -> None:
    found = bench("nights.py", "--seeds", 2, "--nights", 3, "--kills", 1, "--report", tmp_path / "nights.md")
    assert found["wrong"] == {}
    assert [tally["nights"] for tally in found["counts"].values()] == [3, 3]
    assert "Histories in which something was wrong: 0 of 2." in (tmp_path / "nights.md").read_text()


def test_bits_that_flip_are_counted_by_file(tmp_path: Path) -> None:
    found = bench("flips.py", "--flips", 10, "--report", tmp_path / "flips.md")
    assert (found["flips"], found["noticed"], found["amiss"]) == (10, 10, 0)
    assert "| copies/model.json" in (tmp_path / "flips.md").read_text()


def test_storms(tmp_path: Path) -> None:
    small = ("--rows", 150, "--storm", 2, "--silence", 1, "--read-timeout", 30)
    found = bench("storms.py", *small, "--report", tmp_path / "storms.md")
    assert (found["trials"], found["wrong"]) == (12, 0)
    assert "| web | the token expires | 75 |" in (tmp_path / "storms.md").read_text()


def test_the_status_of_many_parts_on_a_disk_and_in_a_store(tmp_path: Path) -> None:
    seconds = bench("status.py", "--parts", 40, "--rounds", 1, "--report", tmp_path / "status.md")["seconds"]
    assert set(seconds) == {f"{place}, {what}" for place in ("disk", "store") for what in ("first", "all counted")}
    assert all(took["median"] > 0 for took in seconds.values())
