"""Thumbnails of rows, made in a process that may die or hang; what cannot be made is a reason instead of a picture.

The process is trusted no more than the images that it opens: its answers are checked to be what they should be before
they become part of a page.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clipbatch.rundir.layout import RunDir
from clipbatch.workers.child import Child

# Within which the process must have loaded its libraries.
START_S = 60.0
# Within which a picture must be there.
IMAGE_S = 20.0
# Within which all pictures must be there, starts not counted; those that are not are left out.
ALL_S = 45.0
MAX_DEATHS = 10
_MAX_LINE = 16_384
# Base64 of RIFF..., as every WebP begins.
_PICTURE = re.compile(r"UklGR[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture, or why there is none."""

    # Of a WebP; empty where there is none.
    base64: str = ""
    why: str = ""


def make(run: RunDir, rows: Iterable[int]) -> dict[int, Thumbnail]:
    """A thumbnail for each of `rows` (row_ids)."""
    left = sorted(set(rows))  # in the manifest's order, so that each of its files is read once
    made: dict[int, Thumbnail] = {}
    left_s, deaths = ALL_S, 0
    while left and deaths < MAX_DEATHS and left_s > 0:
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
    with Child("clipbatch.tools.htmlreport.thumbnails_main", str(run.path), max_line_bytes=_MAX_LINE) as child:
        try:
            child.receive(START_S)
        except (TimeoutError, EOFError):
            return dict.fromkeys(rows, Thumbnail(why="the process that makes pictures does not start")), 0.0
        begun = time.monotonic()
        for row in rows:
            if time.monotonic() - begun > left_s:
                break
            child.send(row)
            try:
                made[row] = thumbnail_of(child.receive(IMAGE_S))
            except TimeoutError:
                made[row] = Thumbnail(why="it took too long")
                break
            except EOFError:
                made[row] = Thumbnail(why="opening it ended the process")
                break
    return made, time.monotonic() - begun


def thumbnail_of(answer: Any) -> Thumbnail:
    """answer: `{"webp": base64}` or `{"why": words}`; anything else is not trusted."""
    match answer:
        case {"webp": str(picture)} if _PICTURE.fullmatch(picture):
            return Thumbnail(base64=picture)
        case {"why": str(why)}:
            return Thumbnail(why=why)
    return Thumbnail(why="opening it ended the process")
