"""Tags and heads of a service: a job of its spool and an answer over HTTP have the labels and margins of a run."""

import json
import os
import signal
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli, rows, start
from tests.support.corpus import make_folder
from tests.support.heads import DEMO_WIDTH, random_layers, save_head
from tests.support.serving import Service, answer, drop

TAGS = """
[groups.tag]
tags = {flies = ["a photo of a bird.", "a photo of a truck."], dog = ["a photo of a dog.", "a photo of a cat."]}
thresholds = {dog = 0.3}
[groups.kind]
labels = ["airplane", "bird", "cat"]
multiple = true
threshold = 0.2
"""


def test_a_job_and_an_answer_have_the_tags_and_heads_of_a_run(cli: Cli, tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 40, seed=23, bad_fraction=0.1)
    files = sorted(path for path in (tmp_path / "in").rglob("*") if path.is_file())
    (tmp_path / "tags.toml").write_text(TAGS)
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
    head = save_head(tmp_path / "taste.safetensors", random_layers(np.random.default_rng(5), [DEMO_WIDTH, 16, 1]))
    options = ("--labels", tmp_path / "tags.toml", "--head", f"taste={head}", "--model", "clipbatch-demo")
    options = (*options, "--device", "cpu")
    cli("run", tmp_path / "list.txt", *options, "--out", tmp_path / "run")
    expected = rows(tmp_path / "run")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    place = ("--http", "127.0.0.1:0", "--root", tmp_path)
    process = start("serve", tmp_path / "spool", *place, *options, env=environment)
    try:
        service = Service(process)
        drop(tmp_path / "spool", "list.txt", files)
        answer(tmp_path / "spool", "list.txt")
        assert rows(tmp_path / "spool" / "runs" / "list.txt").equals(expected)
        cli("verify", tmp_path / "spool" / "runs" / "list.txt")
        some = {"paths": [str(file) for file in files[:8]]}
        request = urllib.request.Request(
            f"{service.url}/classify", json.dumps(some).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answered:
            got = json.load(answered)["rows"]
        for ours, theirs in zip(got, expected.slice(0, 8).to_pylist(), strict=True):
            assert (ours["status"], ours["tag_labels"]) == (theirs["status"], theirs["tag_labels"])
            assert ours["kind_labels"] == theirs["kind_labels"]
            assert ours["taste"] == (theirs["taste"] and pytest.approx(theirs["taste"], abs=0.02))
            assert ours["kind_margin"] == (theirs["kind_margin"] and pytest.approx(theirs["kind_margin"], abs=1e-4))
        assert service.end(signal.SIGTERM) == 0
    finally:
        process.kill()
        process.communicate()
