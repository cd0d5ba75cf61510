"""The wheel works outside of the checkout, and with nothing installed but what it asks for."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def test_a_built_wheel_runs_the_demo_from_a_clean_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("clipbatch-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import clipbatch; print(clipbatch.__file__)"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site))
    made = subprocess.run(
        [sys.executable, site / "bin" / "clipbatch", "demo"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "36 images: 34 ok" in made.stdout
    report = [sys.executable, site / "bin" / "clipbatch", "report", "clipbatch-demo"]
    subprocess.run(report, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "clipbatch-demo" / "report.html").stat().st_size > 50_000
    assert len(list((tmp_path / "clipbatch-demo" / "parts").glob("*.parquet"))) == 1


def test_one_version_of_python_is_named_everywhere() -> None:
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for name in ("README.md", "docs/guides/installing.md", "containers/Dockerfile"):
        named = re.findall(r"[Pp]ython3?(?: is)? (3\.\d+)", (ROOT / name).read_text())
        assert named, name
        assert set(named) == {python}, name


def closure(requirements: list[str]) -> set[str]:
    """The names of the distributions that `requirements` bring, with what those need in turn."""
    names, queue = set[str](), [(Requirement(text), "") for text in requirements]
    seen = set[tuple[str, str]]()
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                queue += [(Requirement(text), wanted) for text in importlib.metadata.requires(name) or ()]
        names.add(name)
    return names


@pytest.fixture(scope="module")
def only_for_tests() -> set[str]:
    """Top-level modules that are installed here, and that `pip install clipbatch` does not bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = closure(project["dependencies"]) | {"clipbatch", "pip"}
    modules = importlib.metadata.packages_distributions()
    return {name for name, owners in modules.items() if not needed & set(map(canonicalize_name, owners))}


def test_a_run_and_its_report_need_nothing_but_the_dependencies(only_for_tests: set[str], tmp_path: Path) -> None:
    assert {"pyspark", "ray", "transformers", "moto", "playwright", "pytest"} < only_for_tests
    hide = f"""
import sys
from importlib.machinery import PathFinder
class Installed:
    find_distributions = staticmethod(PathFinder.find_distributions)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {only_for_tests!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed()
"""
    (tmp_path / "sitecustomize.py").write_text(hide)  # in each process, the worker's and the thumbnailer's too
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "pipeline")])}
    photo = ROOT / "pipeline" / "clipbatch" / "data" / "demo" / "images" / "cat-1.jpg"

    def python(*args: object, code: int = 0) -> str:
        command = [sys.executable, *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stderr

    def clipbatch(*args: object) -> None:
        python("-m", "clipbatch", *args)

    assert "No module named 'duckdb'" in python("-c", "import duckdb", code=1)
    model = ("--model", "clipbatch-demo", "--device", "cpu")
    clipbatch("run", photo.parent, "--labels", "cifar10", *model, "--out", "scores", "--embeddings")
    clipbatch("verify", "scores")
    clipbatch("report", "scores")
    clipbatch("rescore", "scores", "--labels", "cat,dog", "--device", "cpu", "--out", "again")
    clipbatch("parity", photo.parent, *model, "--limit", 4)
