"""Find the rows that kill: each suspect is decoded alone in a process that may die, with limits on memory and time.

Knows nothing of shards or of what is done with the answer. Nothing is blamed on company: a row that survives alone
goes back among the others.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any

from clipbatch.errors import ClipbatchError
from clipbatch.process import safe_environment
from clipbatch.rundir import RunDir
from clipbatch.types import Reject

MEMORY_MIB = 4096
"""More than Pillow needs for the largest image that `max_pixels` lets through by default."""
_START_S = 300.0
"""Within which a probe must have loaded its libraries."""


def find_killers(run: RunDir, device: str, rows: list[int], runtime: dict[str, Any]) -> dict[int, Reject]:
    """Those of `rows` (row_ids) that end a process or do not come back within `decode_timeout`, with what they did.

    runtime: the settings of this invocation, `Settings.runtime`.
    """
    killers: dict[int, Reject] = {}
    left = list(rows)
    while left:
        alive, reject = _probe(run, device, left, runtime)
        left = left[alive:]
        if reject is not None and left:
            killers[left.pop(0)] = reject
    return killers


def _probe(run: RunDir, device: str, rows: list[int], runtime: dict[str, Any]) -> tuple[int, Reject | None]:
    """Put `rows` through one probe process: how many it lived through, and how the next one ended it."""
    timeout_s = runtime["read_timeout"] + runtime["decode_timeout"]
    arguments = [os.fspath(run.path), device, json.dumps(runtime), str(MEMORY_MIB)]
    command = [sys.executable, "-m", "clipbatch.probe", *arguments]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, env=safe_environment()
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        try:
            if not _answers(process.stdout, _START_S):
                process.kill()
                log.seek(0)
                raise ClipbatchError(f"the process that tries suspects cannot start:\n{log.read().decode()[-2000:]}")
            for number, row in enumerate(rows):
                try:
                    process.stdin.write(f"{row}\n".encode())
                    answer = _answers(process.stdout, timeout_s)
                except BrokenPipeError:
                    answer = b""
                if answer is None:
                    return number, Reject(status="timeout", error=f"decoding it took longer than {timeout_s:g} s")
                if not answer:
                    error = f"decoding it ends a process {ending(process.wait())}"
                    return number, Reject(status="crashed", error=error)
            return len(rows), None
        finally:
            process.kill()


def _answers(stdout: IO[bytes], timeout_s: float) -> bytes | None:
    """The next line; empty where the process has ended, None where it does not come within `timeout_s`."""
    ready, _, _ = select.select([stdout], [], [], timeout_s)
    return stdout.readline() if ready else None


def ending(code: int) -> str:
    """How a process ended, in words."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    except ValueError:
        return f"by signal {-code}"
