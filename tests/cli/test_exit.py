"""How the command ends its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BUSY = """
import io, sys, threading, time
import pyarrow as pa, pyarrow.parquet as pq
from clipbatch.cli import main

class Slow(io.FileIO):
    def read(self, size=-1):
        begun.set()
        time.sleep(0.3)
        return super().read(size)

path, begun = sys.argv.pop(), threading.Event()
slow, footer = pa.PythonFile(Slow(path), mode="r"), pq.read_metadata(path)
threading.Thread(target=lambda: pq.ParquetFile(slow, metadata=footer, pre_buffer=True).read(), daemon=True).start()
begun.wait()
main()
"""


def test_a_working_thread_of_arrow_does_not_abort_the_process(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(9)}), tmp_path / "t.parquet")
    command = [sys.executable, "-c", BUSY, "--version", str(tmp_path / "t.parquet")]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("clipbatch ")


def test_a_full_standard_output_is_an_error_and_a_closed_one_is_not() -> None:
    command = f"{sys.executable} -m clipbatch --version"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, env=buffered)
    assert full.returncode == 1
    assert full.stderr.startswith("clipbatch: cannot write to standard output: ")
    assert len(full.stderr.splitlines()) == 1
    closed = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
