"""Tuning: the process that tries settings, the search, and the file that it writes."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import from_flat, read_toml
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.stages.decode import Decode
from clipbatch.tools.tune import search, trials_main
from clipbatch.tools.tune.search import Trial, Tuned
from clipbatch.tools.tune.trials import TrialRunner
from clipbatch.workers.devices import Seat
from tests.conftest import DEMO, Cli, children_of, rows

DEMO_MODEL = {"labels": "cifar10", "model": "clipbatch-demo", "device": "cpu"}


class Fake:
    """Answers with rates from a table; what is not in it dies."""

    def __init__(self, rates: dict[tuple[tuple[str, Any], ...], list[float]]) -> None:
        self.rates = rates

    def rate(self, changes: dict[str, Any], seconds: float) -> dict[str, Any]:
        rates = self.rates.get(tuple(changes.items()))
        if not rates:
            return {"error": "the process ended by SIGSEGV"}
        return {"images_per_s": rates.pop(0) if len(rates) > 1 else rates[0], "bottleneck": "decode"}


def find(rates: dict[tuple[tuple[str, Any], ...], list[float]], seconds: float = 60) -> tuple[Any, Any, list[Trial]]:
    told: list[Trial] = []
    made = search._Search(Fake(rates), None, time.monotonic() + seconds, told.append)  # type: ignore[arg-type]
    steps: dict[str, list[Any]] = {"decoder": ["dali", "pil"], "batch_size": [16, 64]}
    chosen, gain = made.find(steps)
    assert told == made.trials
    return chosen, gain, told


def test_faster_settings_are_kept_and_combined() -> None:
    dali, both = ("decoder", "dali"), (("decoder", "dali"), ("batch_size", 64))
    chosen, gain, _ = find({(): [100], (dali,): [150], (dali, ("batch_size", 16)): [140], both: [180]})
    assert chosen == {"decoder": "dali", "batch_size": 64}
    assert gain == 1.8


def test_a_gain_that_is_not_repeated_leaves_the_defaults() -> None:
    assert find({(): [100], (("decoder", "dali"),): [150, 150, 101]})[:2] == ({}, None)
    assert find({(): [100], (("decoder", "dali"),): [102]})[:2] == ({}, None)


def test_settings_that_kill_the_process_are_named_and_others_are_tried() -> None:
    chosen, _, trials = find({(): [100], (("batch_size", 16),): [200]})
    assert chosen == {"batch_size": 16}
    assert [trial.note for trial in trials if trial.changes == {"decoder": "dali"}] == ["the process ended by SIGSEGV"]


def test_without_time_nothing_is_measured_and_nothing_is_changed() -> None:
    chosen, gain, trials = find({(): [100], (("decoder", "dali"),): [150]}, seconds=0)
    assert (chosen, gain) == ({}, None)
    assert {trial.images_per_s for trial in trials} == {None}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_all_candidates_are_valid_settings_of_a_run(photos: Path, tmp_path: Path, device: str) -> None:
    settings = from_flat({"inputs": [str(photos)], "limit": 4, **DEMO_MODEL, "device": device})
    plan = planner.plan(settings, tmp_path / "run")
    found = search.candidates(plan, Seat(device=device, cores=tuple(range(16))))
    assert ("cpu_share" in found) == (device == "cuda:0")
    for name, values in found.items():
        assert values
        for value in values:
            assert plan.run_settings().replace(**{"shard_size": None, name: value}).flat()[name] == value
            assert value != plan.settings[name]


def test_the_file_is_taken_by_run_and_no_other_is_overwritten(tmp_path: Path) -> None:
    seat = Seat(device="cpu", cores=(0, 1))
    chosen = {"decoder": "dali", "batch_size": 16, "read_threads": 4}
    found = Tuned(chosen=chosen, gain=1.5, trials=[], rows=7, seat=seat, defaults={})
    search.write(tmp_path / "tuned.toml", found, from_flat({"model": "clipbatch-demo"}))
    assert read_toml(tmp_path / "tuned.toml") == chosen
    search.write(tmp_path / "tuned.toml", found, from_flat({}))
    (tmp_path / "mine.toml").write_text("labels = 'a,b'\n")
    for path in (tmp_path / "mine.toml", tmp_path, tmp_path / "gone" / "tuned.toml"):
        with pytest.raises(InputError, match="choose another file"):
            search.write(path, found, from_flat({}))
    assert (tmp_path / "mine.toml").read_text() == "labels = 'a,b'\n"


def test_the_trial_process_answers_and_is_restarted_when_it_dies(photos: Path, tmp_path: Path) -> None:
    planner.plan(from_flat({"inputs": [str(photos)], "limit": 20, "batch_size": 8, **DEMO_MODEL}), tmp_path / "run")
    runner = TrialRunner(RunDir(tmp_path / "run"), Seat(device="cpu", cores=(0,)), time.monotonic() + 200)
    try:
        runner.load()
        for changes in ({}, {"batch_size": 32}, {"decoder": "pil", "decode_threads": 2}):
            found = runner.rate(changes, 0.1)
            assert found
            assert found["images_per_s"] > 0
        refused = runner.rate({"decoder": "pil", "cpu_share": 0.5}, 0.1)
        assert refused
        assert "cpu_share" in refused["error"]
        (child,) = (
            pid for pid in children_of(os.getpid()) if b"trials_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(child, signal.SIGKILL)
        answer = runner.rate({}, 0.1)
        assert answer
        answer = runner.rate({}, 0.1) if "error" in answer else answer  # it may not have been noticed yet
        assert answer
        assert answer["images_per_s"] > 0
    finally:
        runner.close()


def test_tune_tries_settings_on_real_images_and_run_takes_what_it_wrote(cli: Cli, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.toml"
    made = json.loads(cli("tune", photos, *DEMO[2:], "--budget", 90, "--out", out, "--limit", 64, "--json").stdout)
    assert made["trials"][0]["changes"] == {}
    assert made["trials"][0]["images_per_s"] > 0
    assert made["rows"] == 64
    assert out.read_text().startswith("# Made by clipbatch tune")
    assert read_toml(out) == made["chosen"]
    cli("run", photos, *DEMO, "--config", out, "--limit", 8, "--out", tmp_path / "out")
    assert rows(tmp_path / "out").num_rows == 8


def test_tune_refuses_wrong_options_before_any_trial(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned.toml").write_text("labels = 'a,b'\n")
    assert "choose another file" in cli("tune", photos, code=3, cwd=tmp_path).stderr
    assert "nowhere" in cli("tune", "nowhere", "--out", "new.toml", code=3, cwd=tmp_path).stderr
    assert not (tmp_path / "new.toml").exists()


def test_the_share_of_the_engines_is_measured_as_a_run_does_and_its_neighbours_are_tried() -> None:
    measured = {"images_per_s": 100, "bottleneck": "decode", "hw_decoder_load": 0.6}
    asked: list[dict[str, Any]] = []

    class Gpu:
        def rate(self, changes: dict[str, Any], seconds: float) -> dict[str, Any]:
            asked.append(changes)
            share = changes.get("hw_decoder_load")
            return measured if share is None else {"images_per_s": 100 + 100 * (0.6 - share), "bottleneck": "decode"}

    made = search._Search(Gpu(), None, time.monotonic() + 60, lambda _: None)  # type: ignore[arg-type]
    chosen, gain = made.find({"read_threads": [4]})
    assert made.share == 0.6
    assert [changes["hw_decoder_load"] for changes in asked[1:4]] == search.shares(0.6) == [0.45, 0.55, 0.65]
    assert chosen == {"hw_decoder_load": 0.45}
    assert gain == pytest.approx(1.15)
    assert search.shares(0.0) == []
    assert search.shares(1.0) == [0.85, 0.95]


def test_a_trial_measures_the_share_once_and_ends_its_threads(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = from_flat({"inputs": [str(photos)], "limit": 16, "batch_size": 8, **DEMO_MODEL, "decoder": "dali"})
    planner.plan(settings, tmp_path / "run")
    sizes: list[list[int]] = []

    def measure(decode: Decode, files: list[bytearray]) -> float:
        sizes.append([len(data) for data in files])
        return 0.25

    def on_gpu(*arguments: Any, **kinds: Any) -> Decode:
        stage = Decode(*arguments, **kinds)
        stage.engine_share = stage.engine_share or 0.65  # as on a GPU
        return stage

    monkeypatch.setattr(trials_main, "engine_share", measure)
    monkeypatch.setattr(trials_main, "Decode", on_gpu)
    trials = trials_main.Trials(RunDir(tmp_path / "run"), "cpu")
    before = set(threading.enumerate())
    assert [trials.rate({}, 0.1).get("hw_decoder_load") for _ in range(2)] == [0.25, 0.25]
    assert "hw_decoder_load" not in trials.rate({"hw_decoder_load": 0.5}, 0.1)
    assert sizes == [[path.stat().st_size for path in sorted(photos.glob("*.jpg"))[:16]]]
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()}
    assert left == set()
