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
from typing import Any

from clipbatch.rundir import RunDir
from clipbatch.types import Reject

MEMORY_MIB = 4096
"""More than Pillow needs for the largest image that `max_pixels` lets through by default."""
_START_S = 300.0
"""Within which a probe must have loaded its libraries and answered for its first row."""


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
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            for number, row in enumerate(rows):
                try:
                    process.stdin.write(f"{row}\n".encode())
                    answered, _, _ = select.select([process.stdout], [], [], timeout_s if number else _START_S)
                except BrokenPipeError:
                    answered = [process.stdout]
                if not answered:
                    return number, Reject(status="timeout", error=f"decoding it took longer than {timeout_s:g} s")
                if not process.stdout.readline():
                    return number, Reject(
                        status="crashed", error=f"decoding it ends a process {ending(process.wait())}"
                    )
            return len(rows), None
        finally:
            process.kill()


def ending(code: int) -> str:
    """How a process ended, in words."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    except ValueError:
        return f"by signal {-code}"
