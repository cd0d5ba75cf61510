"""The run that e041681 left half done, kept in `fixtures/`, and commands to try on a copy of it."""

from pathlib import Path

from tests.conftest import Cli, error_in

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-e041681"


def run_command(inputs: str = "/proc/self/cwd/images") -> tuple[str, ...]:
    """`clipbatch run` over images of the fixture, in a folder that is a copy of it."""
    return ("run", inputs, "--labels", "groups.toml", "--model", "clipbatch-demo", "--device", "cpu")


def tree(folder: Path) -> dict[str, bytes]:
    """All files but those that say when something was done."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".counts.json", "report.json", "report.html")
    }


def every_command(inputs: str) -> list[list[str]]:
    """Each command that reads a run directory, on the run `run` in the working folder."""
    given = {
        "status": ["run"],
        "verify": ["run"],
        "report": ["run", "--out", "page.html"],
        "compact": ["run", "--out", "files"],
        "rescore": ["run", "--labels", "cat,dog", "--out", "again"],
        "run": ["--out", "run"],
        "plan": [inputs, *run_command()[2:], "--out", "run"],
        "submit": ["slurm", "--out", "run", "--array", "2", "--dry-run"],
    }
    return [[name, *arguments] for name, arguments in given.items()]


def refused(warm: Cli, folder: Path, *args: str) -> str:
    """What `clipbatch ARGS` says in one line, after those of its log, as it ends with exit code 3."""
    return error_in(warm(*args, code=3, cwd=folder).stderr)
