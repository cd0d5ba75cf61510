"""Problems around a command: its working folder, its memory, names of files that are not UTF-8."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from clipbatch.config.memory_limits import too_little_memory
from tests.conftest import DEMO, Cli, error_in, rows

# No UTF-8.
ODD = os.fsdecode(b"\xff")


def start_in_a_deleted_folder(tmp_path: Path, *args: object) -> "subprocess.CompletedProcess[str]":
    gone = tmp_path / "gone"
    gone.mkdir()
    return subprocess.run(
        [sys.executable, "-m", "clipbatch", *map(str, args)],
        preexec_fn=gone.rmdir,
        cwd=gone,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_absolute_paths_work_where_the_working_folder_was_deleted(warm: Cli, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = start_in_a_deleted_folder(tmp_path, "run", photos, *DEMO, "--device", "cpu", "--limit", 4, "--out", out)
    assert made.returncode == 0, made.stderr
    assert rows(out)["status"].to_pylist() == ["ok"] * 4
    assert "4 rows in 1 part" in warm("verify", out).stdout
    for command in (("report", out), ("compact", out, "--out", tmp_path / "few"), ("fetch", "clipbatch-demo")):
        made = start_in_a_deleted_folder(tmp_path, *command)
        assert made.returncode == 0, made.stderr
    assert b"data:image/webp" in (out / "report.html").read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ("run", ".", *DEMO, "--out", "/tmp/none"),
        ("run", "-", *DEMO, "--out", "/tmp/none"),
        ("run", "/etc", *DEMO, "--all-files", "--root", "x", "--out", "/tmp/none"),
        ("run", "/etc", *DEMO, "--all-files", "--out", "none"),
        ("serve", "spool", *DEMO),
    ],
)
def test_relative_paths_are_refused_in_a_deleted_working_folder(tmp_path: Path, command: tuple[str, ...]) -> None:
    made = start_in_a_deleted_folder(tmp_path, *command)
    assert (made.returncode, made.stdout) == (3, "")
    assert re.search("working folder has been deleted: cd to|the folder has gone: put it back", error_in(made.stderr))
    assert not Path("/tmp/none").exists()


@pytest.mark.parametrize("mib", [32, 256, 540, 1500, 3000, 3500])
def test_too_low_a_memory_limit_is_refused_with_the_remedy(photos: Path, tmp_path: Path, mib: int) -> None:
    """A worker takes some 4 GiB of address space, on machines with few cores perhaps less; a plan 450 MiB."""
    limit = mib * 2**20
    made = subprocess.run(
        [sys.executable, "-m", "clipbatch", "run", photos, *DEMO, "--device", "cpu", "--limit", "4", "--out", "run"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if made.returncode == 0 and mib > 2000:
        return
    assert made.returncode == 3, made.stderr
    error = error_in(made.stderr)
    assert error.startswith(f"clipbatch: the limit on memory, ulimit -v {mib * 1024} (KiB), is too low")
    assert error.endswith(": raise it, as with ulimit -v unlimited\n")


def test_parts_are_not_blamed_for_too_little_memory(warm: Cli, photos: Path, tmp_path: Path) -> None:
    warm("run", photos, *DEMO, "--device", "cpu", "--limit", 4, "--out", tmp_path / "run")
    for mib in range(350, 700, 50):  # the least that it needs is somewhere there
        made = subprocess.run(
            [sys.executable, "-m", "clipbatch", "verify", tmp_path / "run"],
            preexec_fn=lambda mib=mib: resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20, mib * 2**20)),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert made.returncode in (0, 3), made.stderr
        assert "ulimit -v" in made.stderr if made.returncode else not made.stderr


def test_only_errors_of_memory_count_as_too_little_memory() -> None:
    assert too_little_memory(RuntimeError("can't start new thread")) is None  # nothing is limited here
    refusal = too_little_memory(pa.ArrowMemoryError("malloc of size 999 failed"))
    assert refusal is not None
    assert "this machine has too little memory: ArrowMemoryError: malloc of size 999 failed" in str(refusal)


def test_an_output_that_is_not_utf8_is_refused_before_anything_is_written(
    warm: Cli, photos: Path, tmp_path: Path
) -> None:
    warm("run", photos, *DEMO, "--device", "cpu", "--limit", 4, "--embeddings", "--out", tmp_path / "good")
    odd = tmp_path / f"odd{ODD}"
    run = ("run", photos, *DEMO, "--limit", 4)
    for command in (
        ("plan", *run[1:], "--out", odd),
        (*run, "--out", odd),
        (*run, "--incremental", "--out", odd),
        (*run, "--out", f"s3://bucket/{ODD}"),
        ("rescore", tmp_path / "good", "--labels", "cat,dog", "--out", odd),
        ("compact", tmp_path / "good", "--out", odd),
        ("status", odd),
        ("verify", odd),
    ):
        said = warm(*command, code=3).stderr
        assert said.count("\n") == 1
        assert "is not UTF-8, and Parquet files there could not be read: choose another name" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]
    warm("report", tmp_path / "good", "--out", tmp_path / f"page{ODD}.html")
    assert (tmp_path / f"page{ODD}.html").stat().st_size > 1000


def test_inputs_labels_settings_and_roots_need_not_be_utf8(warm: Cli, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"in{ODD}"
    folder.mkdir()
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))[:3]):
        shutil.copy(photo, folder / f"{number}{ODD}.jpg")
    labels, settings, manifest = (tmp_path / f"{name}{ODD}" for name in ("labels.txt", "run.toml", "list.txt"))
    labels.write_text("cat\ndog\n")
    settings.write_text('model = "clipbatch-demo"\ndevice = "cpu"\nbatch_size = 4\n')
    manifest = tmp_path / f"list{ODD}.txt"
    manifest.write_bytes(b"".join(b"%d\xff.jpg\n" % number for number in range(3)))
    common = ("--labels", labels, "--config", settings)
    warm("run", folder, *common, "--out", tmp_path / "folder")
    warm("run", manifest, "--root", folder, *common, "--out", tmp_path / "root")
    found, listed = rows(tmp_path / "folder"), rows(tmp_path / "root")
    assert found["status"].to_pylist() == ["ok"] * 3
    assert listed.select(["status", "label", "score"]).equals(found.select(["status", "label", "score"]))
    for out in ("folder", "root"):
        warm("verify", tmp_path / out)
        warm("report", tmp_path / out)


def test_a_run_in_a_working_folder_that_is_not_utf8(warm: Cli, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    warm("run", photos, *DEMO, "--device", "cpu", "--limit", 4, "--embeddings", "--out", "run", cwd=folder)
    warm("verify", "run", cwd=folder)
    said = warm("rescore", "run", "--labels", "cat,dog", "--out", "again", cwd=folder, code=3).stderr
    assert "is not UTF-8" in said  # workers would open it by its absolute path
    assert not (folder / "again").exists()
