"""Commands whose standard input, output or error is closed, full, or read by nobody; with real processes and shells."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clipbatch.config.models import entries
from tests.conftest import DEMO, Cli, error_in
from tests.support.serving import answer, drop

CLOSED = ("<&-", ">&-", "2>&-", "<&- >&- 2>&-")
FULL = (">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full")
PIPED = ("| true", "2>&1 | true")
NO_SPACE = "clipbatch: cannot write to standard output: No space left on device\n"
IMAGES = (*DEMO, "--device", "cpu", "--limit", "8", "--embeddings")


def shell(redirections: str, *args: object, unbuffered: str = "") -> "subprocess.CompletedProcess[str]":
    """`clipbatch ARGS REDIRECTIONS` in bash; its exit code is the command's, not that of the end of a pipe."""
    command = shlex.join([sys.executable, "-m", "clipbatch", *map(str, args)])
    return subprocess.run(
        ["bash", "-c", f"{command} {redirections}; exit ${{PIPESTATUS[0]}}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(warm: Cli, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and a rescoring of it."""
    folder = tmp_path_factory.mktemp("finished")
    warm("run", photos, *IMAGES, "--out", folder / "run")
    warm("rescore", folder / "run", "--labels", "cat,dog", "--out", folder / "again")
    return folder


def parts(run: Path) -> list[bytes]:
    return [part.read_bytes() for part in sorted((run / "parts").iterdir())]


def arguments(folder: Path, command: str) -> list[object]:
    words = {"RUN": folder / "run", "FEW": folder / "few"}
    return [words.get(word, word) for word in command.split()]


ON_DISK = ("plan --out RUN", "run --out RUN --json --quiet", "report RUN", "compact RUN --out FEW")
PRINTED = ("status RUN", "verify RUN --json", "--help")


@pytest.mark.parametrize("command", [*ON_DISK, *PRINTED])
def test_a_stream_that_is_closed_or_read_by_nobody_changes_nothing(finished: Path, command: str) -> None:
    words = arguments(finished, command)
    usual = shell("", *words)
    assert (usual.returncode, usual.stderr) == (0, "")
    assert usual.stdout
    for how in (*CLOSED, *PIPED, "2>/dev/full"):
        made = shell(how, *words)
        assert (made.returncode, made.stderr) == (0, ""), how
        printed = not (how.startswith(">&-") or " >&-" in how or "|" in how)
        assert bool(made.stdout) == printed, how
    assert shell("| true", *words, unbuffered="1").returncode == 0


@pytest.mark.parametrize("command", [*ON_DISK, *PRINTED])
def test_a_full_standard_output_is_a_failure_of_what_only_prints(finished: Path, command: str) -> None:
    wanted, words = int(command in PRINTED), arguments(finished, command)
    for how, unbuffered in ((">/dev/full", ""), (">/dev/full", "1"), ("<&- >/dev/full 2>&-", "")):
        made = shell(how, *words, unbuffered=unbuffered)
        assert (made.returncode, made.stdout, made.stderr) == (wanted, "", "" if "2>" in how else NO_SPACE)


def test_verify_fails_with_its_exit_code_wherever_its_output_goes(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", finished / "run", out], check=True)
    for part in (out / "parts").iterdir():
        part.write_bytes(part.read_bytes()[:-1])
    for how in (*CLOSED, *FULL, *PIPED):
        assert shell(how, "verify", out).returncode == 5, how
    assert shell("2>&-", "status", tmp_path / "none").returncode == 3
    assert shell("<&- >&- 2>&-", "run", "--no-such-option").returncode == 2


@pytest.mark.parametrize("how", [">&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_images_are_labelled_with_any_standard_streams(photos: Path, finished: Path, tmp_path: Path, how: str) -> None:
    made = shell(how, "run", photos, *IMAGES, "--quiet", "--out", tmp_path / "run")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert parts(tmp_path / "run") == parts(finished / "run")


def test_a_rescoring_needs_no_streams(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert shell("<&- >&- 2>&-", "rescore", finished / "run", "--labels", "cat,dog", "--out", out).returncode == 0
    assert parts(out) == parts(finished / "again")


def test_a_manifest_on_a_closed_standard_input_is_an_empty_one(tmp_path: Path) -> None:
    made = shell("<&-", "run", "-", *IMAGES, "--out", tmp_path / "run")
    assert made.returncode == 3
    assert "names no images" in error_in(made.stderr)


def test_a_service_needs_no_streams(photos: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    command = shlex.join([sys.executable, "-m", "clipbatch", "serve", str(spool), *DEMO, "--device", "cpu"])
    service = subprocess.Popen(["bash", "-c", f"exec {command} <&- >&- 2>&-"])
    try:
        (spool / "in").mkdir(parents=True)
        drop(spool, "a.txt", sorted(photos.iterdir())[:3])
        assert answer(spool, "a.txt")["status"] == {"ok": 3}
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=60) == 0
    finally:
        service.kill()
        service.wait()


def test_a_slow_reader_whose_pipe_does_not_wait_gets_everything() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with subprocess.Popen([sys.executable, "-m", "clipbatch", "models", "--json"], stdout=writing) as process:
        os.close(writing)
        threading.Event().wait(1.0)
        with open(reading, "rb") as file:
            found = json.load(file)
        assert process.wait(timeout=60) == 0
    assert [row["name"] for row in found] == [entry.name for entry in entries()]


def test_names_that_are_no_text_are_printed_byte_for_byte(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.html")
    script = f"import sys; from clipbatch.cli.standard_streams import StandardStreams as S; s = S(); print({name!r})"
    for encoding, wanted in (("utf-8", b"caf\xe9.html\n"), ("ascii", b"caf\\udce9.html\n")):
        made = subprocess.run(
            [sys.executable, "-c", f"{script}; s.close(0)"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert (made.returncode, made.stdout, made.stderr) == (0, wanted, b"")


def test_the_journal_never_gets_the_number_of_a_standard_stream() -> None:
    script = "from clipbatch.stages.journal import Journal; raise SystemExit(Journal().fd)"
    for how in ("", "<&- >&- 2>&-"):
        made = subprocess.run(["bash", "-c", f"exec {shlex.join([sys.executable, '-c', script])} {how}"])
        assert made.returncode > 2
