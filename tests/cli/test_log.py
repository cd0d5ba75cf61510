"""`--log-format json`, and suggestions for mistyped options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO, Cli


def test_progress_and_the_end_of_a_run_are_json_lines(warm: Cli, photos: Path, tmp_path: Path) -> None:
    made = warm("run", photos, *DEMO, "--limit", 5, "--log-format", "json", "--out", tmp_path / "out")
    lines = [json.loads(line) for line in made.stderr.splitlines()]
    assert {line["event"] for line in lines} <= {"message", "progress", "done"}  # the first two where it takes long
    assert lines[-1]["event"] == "done"
    assert (lines[-1]["rows_done"], lines[-1]["status"], lines[-1]["out"]) == (5, {"ok": 5}, str(tmp_path / "out"))
    assert "5 images: 5 ok" in made.stdout
    quiet = warm("run", "--log-format", "json", "--quiet", "--out", tmp_path / "out")
    assert (quiet.stdout, quiet.stderr) == ("", "")


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
    assert (line["event"], line["exit_code"]) == ("error", 3)
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
