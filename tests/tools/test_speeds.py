"""The speeds that `clipbatch models` shows: only those measured on this machine."""

import json
from pathlib import Path

import pytest

from clipbatch.tools import models
from tests.conftest import Cli


def test_models_shows_what_was_measured_here_and_nothing_else(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    assert "images/s" not in cli("models", "ViT-B-32", env=env).stdout
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models.note("ViT-B-32", 61.3, "2026-11-28")
    models.note("ViT-B-16", 15.0, "2026-11-28")
    models.note("ViT-B-16", 16.0, "2026-11-29")
    stored = json.loads(models.speeds_file().read_text())
    stored["RN50"] = {"images_per_s": 999.0, "host": "another", "date": "2026-11-28"}
    models.speeds_file().write_text(json.dumps(stored))
    header, *lines = cli("models", "ViT-B-", env=env).stdout.splitlines()
    assert header.endswith("images/s here")
    shown = {line.split()[0]: line.split()[4:] for line in lines}
    assert (shown["ViT-B-32"], shown["ViT-B-16"], shown["ViT-B-16-SigLIP"]) == (["61.3"], ["16"], [])
    (rn50,) = [
        entry for entry in json.loads(cli("models", "RN50", "--json", env=env).stdout) if entry["name"] == "RN50"
    ]
    assert rn50["images_per_s"] is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"RN50": 3}', '{"RN50": {"images_per_s": "fast", "host": ""}}'])
def test_a_damaged_file_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models.speeds_file().parent.mkdir()
    models.speeds_file().write_text(content)
    assert models.measured() == {}
    models.note("RN50", 1.0, "2026-11-28")
    assert models.measured() == {"RN50": 1.0}
