"""The worked examples of CONTRIBUTING.md, applied to a copy of the package and used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DEMO, rows

ROOT = Path(__file__).parents[2]


class Copy:
    """The package with the examples in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: object) -> str:
        """The standard output of `clipbatch ARGUMENTS`."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "pipeline"), "COLUMNS": "200"}
        command = [sys.executable, "-m", "clipbatch", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    examples = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    for example in examples:
        files = re.findall(r"^\+\+\+ b/(.+)$", example, re.MULTILINE)
        assert 1 <= len(files) <= 3
        subprocess.run(["git", "apply", "-C1", "-"], input=example, text=True, cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", folder], check=True)
    return Copy(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is dark on its left side, and the same one mirrored."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    pixels[:, :24] //= 4
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "b.png")
    return folder


def test_the_setting_mirrors_images_and_leaves_other_runs_as_they_are(
    copy: Copy, pictures: Path, tmp_path: Path
) -> None:
    plain = ("plan", pictures, *DEMO, "--json", "--out")
    here = json.loads(Copy(ROOT).run(*plain, tmp_path / "here"))
    there = json.loads(copy.run(*plain, tmp_path / "there"))
    assert there["fingerprint"] == here["fingerprint"]
    assert "mirror" not in json.loads((tmp_path / "there" / "run.json").read_text())["identity"]
    copy.run("run", pictures, *DEMO, "--out", tmp_path / "plain")
    copy.run("run", pictures, *DEMO, "--mirror", "--out", tmp_path / "mirrored")
    stored, mirrored = (rows(tmp_path / name)["scores"].to_pylist() for name in ("plain", "mirrored"))
    assert stored[0] != stored[1]
    assert mirrored == stored[::-1]


def test_the_input_format_lists_images_and_carries_its_columns(copy: Copy, pictures: Path, tmp_path: Path) -> None:
    (pictures / "x.lst").write_text("7\t0.5\tb.png\n9\t2\ta.png\n11\t1\tgone.png\n")
    copy.run("run", pictures / "x.lst", *DEMO, "--out", tmp_path / "out")
    table = rows(tmp_path / "out").select(["uri", "status", "list_number", "list_label"])
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("b.png", "ok", 7, 0.5),
        ("a.png", "ok", 9, 2.0),
        ("gone.png", "missing", 11, 1.0),
    ]


def test_the_column_and_the_command(copy: Copy, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (90, 60)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no picture")
    copy.run("run", folder, *DEMO, "--aspect", "--out", tmp_path / "out")
    table = rows(tmp_path / "out")
    assert table["aspect"].to_pylist() == [1.5, None]
    counts = json.loads(copy.run("statuses", tmp_path / "out", "--json"))
    assert {status: count for status, count in counts.items() if count} == {
        status: table["status"].to_pylist().count(status) for status in set(table["status"].to_pylist())
    }
    copy.run("run", folder, *DEMO, "--out", tmp_path / "without")
    assert "aspect" not in rows(tmp_path / "without").column_names
