"""`--log-format json`, and suggestions for mistyped options."""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from clipbatch.config import from_flat
from clipbatch.runs import announce
from clipbatch.runs.plan import versions
from clipbatch.workers.progress import Log
from tests.conftest import DEMO, Cli, start


def test_progress_and_the_end_of_a_run_are_json_lines(warm: Cli, photos: Path, tmp_path: Path) -> None:
    made = warm("run", photos, *DEMO, "--limit", 5, "--log-format", "json", "--out", tmp_path / "out")
    lines = [json.loads(line) for line in made.stderr.splitlines()]
    start, plan, *others, done = lines
    assert [line["event"] for line in (start, plan, done)] == ["start", "plan", "done"]
    assert {line["event"] for line in others} <= {"message", "progress"}  # where it takes long
    assert {line["level"] for line in lines} <= {"info", "warning"}
    assert (start["inputs"], start["out"]) == ([str(photos)], str(tmp_path / "out"))
    assert start["settings"] == {"inputs": [str(photos)], "labels": "cifar10", "model": "clipbatch-demo", "limit": 5}
    assert (start["versions"]["torch"], start["hardware"]["host"]) == (version("torch"), platform.node())
    assert (plan["rows"], plan["done"], plan["parts"], plan["settings"]["top_k"]) == (5, 0, 1, None)
    assert (lines[-1]["rows_done"], lines[-1]["status"], lines[-1]["out"]) == (5, {"ok": 5}, str(tmp_path / "out"))
    assert "5 images: 5 ok" in made.stdout
    quiet = warm("run", "--log-format", "json", "--quiet", "--out", tmp_path / "out")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_lines_of_a_log_have_a_time_and_a_level_and_the_error_stays_as_it_is(
    warm: Cli, photos: Path, tmp_path: Path
) -> None:
    command = ("run", photos, *DEMO, "--limit", 5, "--out", tmp_path / "out")
    begun = datetime.datetime.now().astimezone().replace(microsecond=0)
    first, plan, *_, last = warm(*command).stderr.splitlines()
    stamps = [re.fullmatch(r"(\S+) INFO    (.*)", line) for line in (first, plan, last)]
    times = [datetime.datetime.fromisoformat(stamp[1]) for stamp in stamps if stamp]
    assert begun <= times[0] <= times[1] <= times[2] <= begun + datetime.timedelta(minutes=5)
    assert f"labels {photos} into {tmp_path / 'out'} on {platform.node()} (" in first
    assert "limit=5 labels=cifar10 model=clipbatch-demo; torch " in first
    assert "5 images in 1 part, 0 done: clipbatch-demo embedded in " in plan
    assert last.endswith(f"done: {tmp_path / 'out'}: 5 ok")
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"no image")
    bad = ("run", tmp_path / "bad", *DEMO, "--max-bad", 1, "--out", tmp_path / "few")
    *_, stopped, error = warm(*bad, code=4).stderr.splitlines()
    assert re.fullmatch(r"\S+ ERROR   stopped after .* with exit code 4", stopped)
    assert error.startswith("clipbatch: 3 bad images, more than --max-bad allows (1)")


def test_the_version_of_dali_is_said_for_whichever_cuda_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "nvidia_dali_cuda130-9.8.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-dali-cuda130\nVersion: 9.8\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(announce, "versions", versions.__wrapped__)  # which remembers nothing
    announce.start(Log(), from_flat({}), tmp_path / "out")
    assert ", nvidia-dali-cuda130 9.8" in capsys.readouterr().err


def test_a_run_is_measured_while_it_works_on_a_port_and_in_a_file(photos: Path, tmp_path: Path) -> None:
    listed, file = tmp_path / "list.txt", tmp_path / "run.prom"
    names = sorted(str(path) for path in photos.glob("*.jpg"))
    listed.write_text("\n".join(names * (2000 // len(names) + 1)))
    rows = len(listed.read_text().split("\n"))
    file.write_text(
        "# TYPE clipbatch_last_success_timestamp_seconds gauge\nclipbatch_last_success_timestamp_seconds 1e9\n"
        '# TYPE clipbatch_rows gauge\nclipbatch_rows{status="ok"} 7\n# TYPE other gauge\nother 1\n'
    )
    options = ("--shard-size", 64, "--metrics", file, "--metrics-port", 0, "--log-format", "json")
    with start("run", listed, *DEMO, *options, "--out", tmp_path / "out") as process:
        assert process.stderr
        said = (json.loads(line) for line in process.stderr)
        url = next(line["url"] for line in said if line["event"] == "metrics")
        assert url.startswith("http://127.0.0.1:")
        during = _families(file.read_text())
        assert (during["clipbatch_running"], during["clipbatch_planned_rows"]) == ({(): 1}, {(): 0})
        assert during["clipbatch_last_success_timestamp_seconds"] == {(): 1e9}  # of the last run, until this one ends
        assert during["clipbatch_rows"] == {("ok",): 7}
        assert "other" not in during
        while not (done := _scraped(url, "clipbatch_images_total")):
            assert process.poll() is None
            time.sleep(0.1)
        assert done.keys() == {("ok",)}
        assert done["ok",] % 64 == 0
        assert _scraped(url, "clipbatch_planned_rows") == {(): rows}
        assert 64 <= _scraped(url, "clipbatch_done_rows")[()] <= rows
        request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert "clipbatch_images" in {family.name for family in open_metrics(text)}
        assert process.wait() == 0
    after = _families(file.read_text())
    assert (after["clipbatch_running"], after["clipbatch_done_rows"]) == ({(): 0}, {(): rows})
    assert after["clipbatch_images_total"] == after["clipbatch_rows"] == {("ok",): rows}
    assert abs(after["clipbatch_last_success_timestamp_seconds"][()] - time.time()) < 300


def test_a_run_that_fails_leaves_the_time_of_the_last_success(warm: Cli, photos: Path, tmp_path: Path) -> None:
    file, command = tmp_path / "run.prom", ("run", photos, *DEMO, "--limit", 3, "--out", tmp_path / "out")
    warm(*command, "--metrics", file)
    before = _families(file.read_text())
    warm(*command, "--metrics", file, "--top-k", 2, code=3)
    after = _families(file.read_text())
    for name in ("last_success_timestamp_seconds", "rows", "labelled_rows", "duration_seconds"):
        assert after[f"clipbatch_{name}"] == before[f"clipbatch_{name}"]
    assert after["clipbatch_running"] == {(): 0}
    for port, said in (("x", "is no address"), ("192.0.2.1:9000", "choose another address")):
        left = file.read_text()
        assert said in warm(*command, "--metrics", file, "--metrics-port", port, code=3).stderr
        assert file.read_text() == left  # which does not say that a run works


def _scraped(url: str, name: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(url) as answer:
        return _families(answer.read().decode()).get(name, {})


def _families(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name of the metric, and the values of its labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_progress_lines_contain_the_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipbatch.workers import progress

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    shown = progress.Progress(total=10, done=2, bad=1, quiet=False, as_json=True)
    shown.say("a worker ended")
    shown.show(4, 1, "decode")
    shown.show(6, 2, "decode")
    message, first, line = (json.loads(text) for text in capsys.readouterr().err.splitlines())
    assert (first["done"], first["images_per_s"]) == (4, 0)
    assert (message["event"], message["message"]) == ("message", "a worker ended")
    assert {name: line[name] for name in ("event", "done", "total", "bad", "bottleneck")} == {
        "event": "progress",
        "done": 6,
        "total": 10,
        "bad": 2,
        "bottleneck": "decode",
    }
    assert line["images_per_s"] > 0


@pytest.mark.parametrize("wrong", [["nowhere"], ["nowhere", "--labels", "a,b", "--precision", "fp61"]])
def test_every_error_is_a_json_line_too(cli: Cli, tmp_path: Path, wrong: list[str]) -> None:
    made = cli("run", *wrong, "--log-format", "json", "--out", tmp_path / "out", code=3)
    (line,) = [json.loads(text) for text in made.stderr.splitlines()]
    assert (line["event"], line["level"], line["exit_code"]) == ("error", "error", 3)
    assert wrong[-1] in line["message"] or "labels" in line["message"]
    assert "neither text nor json" in cli("run", "a", "--log-format", "xml", "--out", "b", code=2).stderr


def test_a_mistyped_option_or_command_is_answered_with_the_nearest(warm: Cli) -> None:
    assert "--labels" in warm("run", "a", "--label", "b", "--out", "c", code=2).stderr
    assert "verify" in warm("verfy", "scores", code=2).stderr


def test_the_shell_completes_models_and_label_sets() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_CLIPBATCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = Path(sys.executable).with_name("clipbatch")  # as installed, since completion goes by its name
        return subprocess.check_output(command, env={**os.environ, **asked}, text=True).split()

    assert completed("clipbatch run --model ViT-B-16-SigLIP2")[:2] == ["ViT-B-16-SigLIP2", "ViT-B-16-SigLIP2-256"]
    assert completed("clipbatch run --labels doc") == ["documents-10", "documents-27"]
