"""The README, to the letter: every command of its blocks runs, in order, in a folder that has what they speak of."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from safetensors.torch import save_file

from clipbatch.data import demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "make test": "this is it",
    "make setup": "whoever runs this has done it",
    "pip install": "tests/test_wheel.py installs into an empty folder",
    "clipbatch serve": "tests/test_serve_spool.py and tests/test_serve_http.py start it",
    "curl": "tests/test_serve_http.py asks the service",
}
"""Commands that begin so are not run here, and why."""
ADDED = {"clipbatch submit slurm": " --dry-run", "clipbatch tune": " --budget 60"}
"""What is added to commands that begin so: tests/slurm submits to a cluster, and what `tune` finds does not matter."""
DEFAULT_WEIGHTS = "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"


def blocks() -> list[tuple[str, str, str]]:
    """Heading, commands and shown output of each section that has commands; a section is one session in a folder."""
    found: dict[str, list[str]] = {}
    heading = ""
    for match in re.finditer(r"^#+ ([^\n]+)$|^```(sh|text)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        heading = match[1] or heading
        if match[2]:
            found.setdefault(heading, ["", ""])[match[2] == "text"] += match[3]
    return [(name, *texts) for name, texts in found.items() if texts[0]]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub's client with random weights for the default model, which the README's commands take."""
    home = tmp_path_factory.mktemp("hub")
    repository, revision = home / "hub" / DEFAULT_WEIGHTS, "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    weights = {name: weight.half() for name, weight in open_clip.create_model("ViT-B-32").state_dict().items()}
    save_file(weights, repository / "snapshots" / revision / "open_clip_model.safetensors")
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the README's commands speak of, as its readers would have it."""
    images = Path(demo.__file__).parents[1] / "data" / "demo" / "images"
    (tmp_path / "photos").mkdir()
    for image in sorted(images.iterdir())[:12]:
        shutil.copy(image, tmp_path / "photos")
    (tmp_path / "list.txt").write_text("\n".join(sorted(image.name for image in (tmp_path / "photos").iterdir())))
    (tmp_path / "labels.txt").write_text("cat\ndog\nship\n")
    (groups,) = re.findall(r"^```toml\n(\[groups.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "new.toml").write_text(groups)
    (tmp_path / "last").touch()
    os.utime(tmp_path / "last", (0, 0))
    return tmp_path


@pytest.mark.parametrize(("commands", "shown"), [pytest.param(*texts, id=name) for name, *texts in blocks()])
def test_the_commands_of_a_section_run_and_print_what_it_shows(
    commands: str, shown: str, folder: Path, hub: Path, bucket: str
) -> None:
    environment = _environment(folder, hub)
    printed = ""
    for command in re.sub(r"\\\n\s*", "", commands).splitlines():
        if command.startswith(tuple(ELSEWHERE)):
            continue
        made = subprocess.run(
            ["bash", "-o", "pipefail", "-c", _with_what_is_added(command)],
            cwd=ROOT if command.startswith("make ") else folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert made.returncode == 0, f"{command}\n{made.stdout}\n{made.stderr}"
        assert "Traceback" not in made.stderr, command
        printed += made.stdout
    lines = [_without_numbers(line) for line in printed.splitlines()]
    missing = [line for line in shown.splitlines() if line != "..." and _without_numbers(line) not in lines]
    assert missing == [], printed


def _with_what_is_added(command: str) -> str:
    bare = command.partition("#")[0].rstrip()
    return bare + next((more for begin, more in ADDED.items() if command.startswith(begin)), "")


def test_the_python_block_runs(folder: Path, hub: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    made = subprocess.run(
        [sys.executable, "-c", block], cwd=folder, env=_environment(folder, hub), capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert "None" in made.stdout  # the label of the broken image
    assert (folder / "scores" / "report.json").exists()


def _environment(folder: Path, hub: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "0", line)
