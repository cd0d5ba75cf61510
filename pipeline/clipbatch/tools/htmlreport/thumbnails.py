"""Thumbnails of rows, made in a process that may die or hang; what cannot be made is a reason instead of a picture.

The process is trusted no more than the images that it opens: its answers are checked to be what they should be before
they become part of a page.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from clipbatch.rundir.layout import RunDir
from clipbatch.workers import signals
from clipbatch.workers.child import safe_environment
from clipbatch.workers.worker import working_folder

START_S = 60.0
"""Within which the process must have loaded its libraries."""
IMAGE_S = 20.0
"""Within which a picture must be there."""
ALL_S = 45.0
"""Within which all pictures must be there, starts not counted; those that are not are left out."""
MOST_DEATHS = 10
READY = b"ready"
"""What the process says first."""
_MOST_LINE = 16_384
_PICTURE = re.compile(rb"UklGR[A-Za-z0-9+/]+={0,2}")
"""Base64 of RIFF..., as every WebP begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture, or why there is none."""

    base64: str = ""
    """Of a WebP; empty where there is none."""
    why: str = ""


def make(run: RunDir, rows: Iterable[int]) -> dict[int, Thumbnail]:
    """A thumbnail for each of `rows` (row_ids)."""
    left = sorted(set(rows))  # in the manifest's order, so that each of its files is read once
    made: dict[int, Thumbnail] = {}
    left_s, deaths = ALL_S, 0
    while left and deaths < MOST_DEATHS and left_s > 0:
        done, took_s = _session(run, left, left_s)
        made |= done
        left = left[len(done) :]
        left_s -= took_s
        deaths += 1
    return made | dict.fromkeys(left, Thumbnail(why="left out, since those before it took too long"))


def _session(run: RunDir, rows: list[int], left_s: float) -> tuple[dict[int, Thumbnail], float]:
    """Put `rows` through one process until it is ended, and the seconds since it was ready. The last one may be what
    ended it; all fail where it does not start."""
    made: dict[int, Thumbnail] = {}
    command = [sys.executable, "-m", "clipbatch.tools.htmlreport.thumbnails_main", str(run.path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=safe_environment(),
        cwd=working_folder(),
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            if _line(process.stdout, START_S) != READY:
                return dict.fromkeys(rows, Thumbnail(why="the process that makes pictures does not start")), 0.0
            begun = time.monotonic()
            for row in rows:
                signals.check()
                if time.monotonic() - begun > left_s:
                    break
                try:
                    process.stdin.write(f"{row}\n".encode())
                    answer = _line(process.stdout, IMAGE_S)
                except BrokenPipeError:
                    answer = b""
                made[row] = _thumbnail(answer)
                if not answer:
                    break
        finally:
            process.kill()
    return made, time.monotonic() - begun


def _thumbnail(answer: bytes | None) -> Thumbnail:
    """answer: None where it did not come in time, empty where the process ended."""
    if answer is None:
        return Thumbnail(why="it took too long")
    if answer.startswith(b"-"):
        return Thumbnail(why=answer[1:].decode(errors="replace"))
    if _PICTURE.fullmatch(answer):
        return Thumbnail(base64=answer.decode())
    return Thumbnail(why="opening it ended the process")


def _line(stdout: IO[bytes], timeout_s: float) -> bytes | None:
    """The next line without its end; empty where the process has ended or talks nonsense, None where it is late."""
    deadline, got = time.monotonic() + timeout_s, b""
    while not got.endswith(b"\n"):
        ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(stdout.fileno(), _MOST_LINE)
        if not piece or len(got) > _MOST_LINE:
            return b""
        got += piece
    return got[:-1]
