"""`clipbatch init`: files that work at once, from options and from answers on a real terminal."""

import codecs
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipbatch.config import LabelSettings, from_flat, labels, read_toml
from tests.conftest import Cli, rows


def _settings(folder: Path) -> dict[str, object]:
    return from_flat(read_toml(folder / "clipbatch.toml")).flat()


def _answer(command: list[str], answers: list[tuple[str, str]], **more: object) -> tuple[int, str]:
    """Run `clipbatch COMMAND` on a terminal; when it has said the first of each pair, type the second."""
    leader, follower = pty.openpty()
    run = [sys.executable, "-m", "clipbatch", *command]
    with subprocess.Popen(run, stdin=follower, stdout=follower, stderr=follower, **more) as process:  # type: ignore[call-overload]
        os.close(follower)
        said, deadline, waiting = "", time.monotonic() + 300, list(answers)
        decoder = codecs.getincrementaldecoder("utf-8")()
        while time.monotonic() < deadline:
            if waiting and waiting[0][0] in said[said.rfind("\0") + 1 :]:
                os.write(leader, f"{waiting.pop(0)[1]}\n".encode())
                said += "\0"
            if not select.select([leader], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the terminal has gone with the last process on it
                break
            if not piece:
                break
            said += decoder.decode(piece)
        process.kill()
    os.close(leader)
    return process.returncode, said


def test_files_written_from_options_work_from_another_folder(cli: Cli, photos: Path, tmp_path: Path) -> None:
    images = os.path.relpath(photos, tmp_path)
    flags = ("--images", images, "--labels", 'cat, a "dog",#bird', "--model", "clipbatch-demo")
    said = cli("init", *flags, cwd=tmp_path).stdout
    assert said.splitlines()[-1] == f"next: clipbatch run --config {tmp_path / 'clipbatch.toml'} --out scores/"
    assert sorted(os.listdir(tmp_path)) == ["clipbatch.toml", "labels.txt"]
    cli("run", "--config", tmp_path / "clipbatch.toml", "--limit", 3, "--out", tmp_path / "out")
    assert rows(tmp_path / "out").num_rows == 3
    again = cli("init", *flags, cwd=tmp_path, code=3).stderr
    assert "clipbatch.toml exists already" in again


def test_wrong_answers_on_a_terminal_are_asked_for_again(tmp_path: Path, photos: Path) -> None:
    answers = [
        ("What to label", str(tmp_path / "nowhere")),
        ("does not exist", str(photos)),
        ("Labels", "cifar1"),
        ("Did you mean cifar10", "cifar10"),
        ("Model", "vitb32"),
        ("Did you mean", ""),
    ]
    code, said = _answer(["init"], answers, cwd=tmp_path)
    assert code == 0, said
    made = _settings(tmp_path)
    assert (made["inputs"], made["labels"]) == ((str(photos),), "cifar10")
    assert (made["model"], made["pretrained"]) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert os.listdir(tmp_path) == ["clipbatch.toml"]  # a shipped set needs no file of its own


def test_enter_takes_the_default_of_each_question(photos: Path, tmp_path: Path) -> None:
    for folder, images in (("a", "photos"), ("b", ".")):
        (tmp_path / folder).mkdir()
        if images != ".":
            (tmp_path / folder / images).symlink_to(photos)
        answers = [("What to label", ""), ("Labels", ""), ("Model", "")]
        code, said = _answer(["init"], answers, cwd=tmp_path / folder)
        assert code == 0, said
        made = _settings(tmp_path / folder)
        assert made["inputs"] == (os.path.normpath(tmp_path / folder / images),)
        assert (made["labels"], made["model"]) == (str(tmp_path / folder / "labels.txt"), "ViT-B-32")


def test_yes_asks_nothing_and_without_a_terminal_nothing_is_asked(cli: Cli, photos: Path, tmp_path: Path) -> None:
    cli("init", tmp_path, "--images", photos, "--yes")
    made = _settings(tmp_path)
    assert made["labels"] == str(tmp_path / "labels.txt")
    assert len(labels.load(LabelSettings(labels=str(made["labels"]))).names) > 3
    (tmp_path / "empty").mkdir()
    for given in ([], ["--yes"], ["--images", photos]):
        assert "--images" in cli("init", tmp_path / "empty", *given, code=3).stderr
    for wrong in (["--labels", "cat"], ["--labels", "a,b", "--model", "ViTB32"]):
        assert "clipbatch: " in cli("init", tmp_path / "empty", "--images", photos, *wrong, code=3).stderr
    (tmp_path / "file").touch()
    assert "not a folder" in cli("init", tmp_path / "file", "--images", photos, "--yes", code=3).stderr
    cli("init", tmp_path / "made" / "here", "--images", photos, "--yes")
    assert (tmp_path / "made" / "here" / "clipbatch.toml").exists()
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("hidden", ["NO_COLOR", None])
def test_colours_are_for_terminals_alone_and_no_color_is_honoured(cli: Cli, tmp_path: Path, hidden: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    environment |= {"TERM": "xterm-256color", **({hidden: "1"} if hidden else {})}
    _, said = _answer(["--help"], [], env=environment)
    coloured = [part for part in said.split("\x1b[")[1:] if part.split("m")[0].split(";")[-1].startswith(("3", "9"))]
    assert bool(coloured) == (hidden is None)
    assert "\x1b" not in cli("--help").stdout
    _, shown = _answer(["demo", "--out", str(tmp_path / "demo")], [], env=environment)
    assert "36 images: 34 ok" in shown
    assert "\x1b[3" not in shown
