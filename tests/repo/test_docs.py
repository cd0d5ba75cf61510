"""The README and docs/, to the letter: every command of their blocks runs, in order, in a folder with what they name.

A section of a page is one session in one folder. Its ```sh blocks run line by line, its ```sql blocks in DuckDB and its
```python blocks in a process, in the order of the page; ```text blocks are lines that must have been printed by then. A
```toml block begins with the name of its file, which lies in the folder. A block without a language is an illustration.

The README's commands run as users start them. Those of docs/ run in the tests' own process, whose models stay loaded,
unless they need a shell or are about processes.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pyarrow.fs as pafs
import pytest
import yaml
from huggingface_hub import constants
from markdown_it import MarkdownIt
from safetensors.torch import save_file

import clipbatch
from tests.conftest import Cli

ROOT = Path(__file__).parents[2]
OPTIONS = "docs/reference/options.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
RUN = ("sh", "sql", "python")
KINDS = {*RUN, "text", "toml", "yaml", ""}
ELSEWHERE = {
    "make test": "this is it",
    "make setup": "whoever runs this has done it",
    "pip install": "tests/test_wheel.py installs into an empty folder",
    "pip wheel": "it would download all that clipbatch needs",
    "python3 -m venv": "what follows would install into it",
    "/shared/clipbatch": "no virtual environment is made there",
    "docker": "tests/repo/test_job_templates.py checks what can be checked without building the image",
    "apptainer": "the same",
    "clipbatch serve": "tests/test_serve_spool.py and tests/test_serve_http.py start it",
    "clipbatch fetch": "tests/test_fetch.py fetches from a hub on this machine",
    "curl": "tests/serving/test_serve_http.py asks the service",
    "openssl": "it has nothing to do with clipbatch, and tests/serving/test_http_access.py writes tokens",
}
"""Commands that begin so are not run here, and why."""
ADDED = {"clipbatch submit slurm": " --dry-run", "clipbatch tune": " --budget 60"}
"""What is added to commands that begin so: tests/slurm submits to a cluster, and what `tune` finds does not matter."""
PROCESSES = ("--workers", "--engine", "doctor", "tune", "parity")
"""Words of commands that start processes of several kinds."""
DEFAULT_WEIGHTS = "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
_BLOCK = re.compile(r"^#+ (?P<heading>[^\n]+)$|^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]*)(?:#([^)\s]+))?(?=\))")


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Heading, kind and text of each fenced block of `page`."""
    heading, blocks = "", []
    for match in _BLOCK.finditer(PAGES[page]):
        heading = match["heading"] or heading
        if match["kind"] is not None:
            blocks.append((heading, match["kind"], match["text"]))
    return blocks


def sessions() -> list[object]:
    """The blocks of each section that has something to run."""
    found = []
    for page in PAGES:
        sections: dict[str, list[tuple[str, str]]] = {}
        for heading, kind, text in blocks(page):
            sections.setdefault(heading, []).append((kind, text))
        for heading, steps in sections.items():
            if any(kind in RUN for kind, _ in steps):
                found.append(pytest.param(page, steps, id=f"{page.removesuffix('.md')}: {heading}"))
    return found


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub's client with random weights for the default model, which the commands take."""
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
    """What the commands name, as their readers would have it."""
    images = Path(clipbatch.__file__).parent / "data" / "demo" / "images"
    (tmp_path / "photos").mkdir()
    for image in sorted(images.iterdir())[:12]:
        shutil.copy(image, tmp_path / "photos")
    (tmp_path / "list.txt").write_text("\n".join(sorted(image.name for image in (tmp_path / "photos").iterdir())))
    (tmp_path / "labels.txt").write_text("cat\ndog\nship\n")
    (tmp_path / "last").touch()
    os.utime(tmp_path / "last", (0, 0))
    return tmp_path


@pytest.mark.parametrize(("page", "steps"), sessions())
def test_a_section_runs_and_prints_what_it_shows(
    page: str,
    steps: list[tuple[str, str]],
    folder: Path,
    hub: Path,
    s3: pafs.S3FileSystem,
    warm: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.create_dir("bucket")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub / "hub"))
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(hub / "cache"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    printed = ""
    for kind, text in steps:
        if kind == "toml":
            (folder / _file_of(text)).write_text(text)
        elif kind == "sql":
            printed += _started(["duckdb", "-bail", "-c", text], folder)
        elif kind == "python":
            printed += _started([sys.executable, "-c", text], folder)
        elif kind == "sh":
            for command in _commands(text):
                arguments = None if page == "README.md" else _of_clipbatch(command)
                if arguments is None:
                    place = ROOT if command.startswith("make ") else folder
                    printed += _started(["bash", "-o", "pipefail", "-c", command], place)
                else:
                    printed += warm(*arguments, cwd=folder).stdout
        elif kind == "text":
            lines = [_without_numbers(line) for line in printed.splitlines()]
            missing = [line for line in text.splitlines() if line != "..." and _without_numbers(line) not in lines]
            assert missing == [], printed


def _started(arguments: list[str], place: Path) -> str:
    """What a process prints that has to end well."""
    done = subprocess.run(arguments, cwd=place, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{arguments[-1]}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, arguments[-1]
    return done.stdout


def _commands(text: str) -> Iterator[str]:
    """The commands of a ```sh block that run here, without their comments, and with what is added."""
    for command in re.sub(r"\\\n\s*", "", text).splitlines():
        if not command.startswith(tuple(ELSEWHERE)):
            added = next((more for start, more in ADDED.items() if command.startswith(start)), "")
            yield re.sub(r"\s#.*", "", command).rstrip() + added


def _of_clipbatch(command: str) -> list[str] | None:
    """The arguments of a command that needs neither a shell nor processes of its own; None for any other."""
    program, *arguments = shlex.split(command)
    needs_shell = re.search(r"[|<>&;`]|\$\(", re.sub(r"'[^']*'", "", command))
    return None if program != "clipbatch" or needs_shell or {*arguments} & {*PROCESSES} else arguments


def _file_of(text: str) -> str:
    """The name in the first line of a block."""
    match = re.match(r"# (\S+\.\w+)\n", text)
    assert match, f"the first line must be `# NAME.toml`:\n{text}"
    return match[1]


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "0", line)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(page: str) -> None:
    assert {kind for _, kind, _ in blocks(page)} <= KINDS
    for heading, kind, text in blocks(page):
        if kind in ("text", "toml"):  # shown output, and files, belong to something that runs
            beside = [other for where, other, _ in blocks(page) if where == heading]
            assert set(beside) & set(RUN), f"{page}: nothing runs in {heading!r}, beside\n{text}"
    fences = [token.info for token in MarkdownIt().parse(PAGES[page]) if token.type == "fence"]
    assert fences == [kind for _, kind, _ in blocks(page)]  # none is indented or otherwise unseen here


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    for path, anchor in _LINK.findall(re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)):
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert (ROOT / target).is_file(), f"{page} links to {path}"
        if anchor and not anchor.startswith(
            "clipbatch."
        ):  # those are made of docstrings; the site's builder checks them
            assert anchor in _anchors(target), f"{page} links to {path}#{anchor}"


def _anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as repository browsers and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", heading.lower().strip())) for heading in headings}


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 120


def test_the_page_of_options_is_what_the_command_line_has() -> None:
    script = [sys.executable, ROOT / "scripts" / "options_page.py", "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("run", "plan", "serve", "tune", "submit slurm"):
        section = PAGES[OPTIONS].partition(f"## clipbatch {command}\n")[2].partition("\n## ")[0]
        shown = subprocess.run(
            [sys.executable, "-m", "clipbatch", *command.split(), "--help"],
            env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        flags = set(re.findall(r"^[│|]\s+(?:\*\s+)?(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}
        assert flags
        if "all settings of [clipbatch run]" in section:
            section += PAGES[OPTIONS].partition("## clipbatch run\n")[2].partition("\n## ")[0]
        assert [flag for flag in sorted(flags) if f"`{flag}`" not in section] == []


def test_the_alert_rules_use_metrics_that_are_there(tmp_path: Path) -> None:
    from clipbatch.runs.metrics import RunMetrics
    from clipbatch.serving.http import Metrics

    (rules,) = [text for _, kind, text in blocks("docs/operations/monitoring.md") if kind == "yaml"]
    report = {
        "status": {"ok": 1, "timeout": 1},
        "this_run": {"rows": 2, "seconds": 1.0, "images_per_s": 2.0, "restarts": 0},
        "increment": {"new": 2, "changed": 0, "known": 0},
    }
    ran = RunMetrics()
    ran.succeed(report)
    ran.write(tmp_path / "run.prom")
    served = Metrics()
    served.requests.labels(429).inc()
    served.jobs.labels("failed").inc()
    there = (tmp_path / "run.prom").read_text() + served.text()[0].decode()
    expressions = [rule["expr"] for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]]
    assert len(expressions) > 3
    for expression in expressions:
        for name in re.findall(r"clipbatch_\w+", expression):
            assert re.search(rf"^{name}[ {{]", there, re.MULTILINE), name
