"""Makes thumbnails in a process that may die or hang. For an image without a thumbnail there is a reason.

The process opens images that may be hostile, so its answers are not trusted either: they are checked before they become
part of a page.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clipbatch.rundir.layout import RunDir
from clipbatch.workers.child import Child

# How long the process may take to load its libraries.
START_S = 60.0
# How long a picture may take.
IMAGE_S = 20.0
# How long all pictures may take, without the starts of processes. The rest is left out.
ALL_S = 45.0
MAX_DEATHS = 10
_MAX_LINE = 16_384
# Every WebP begins with RIFF, which is UklGR in base64.
_PICTURE = re.compile(r"UklGR[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture, or the reason why there is none."""

    # A WebP; empty if there is none.
    base64: str = ""
    why: str = ""


def make(run: RunDir, rows: Iterable[int], left_s: float = ALL_S) -> dict[int, Thumbnail]:
    """A thumbnail for each of `rows` (row_ids). left_s: how long it may take, without the starts of processes."""
    left = sorted(set(rows))  # in manifest order, so each file of the manifest is read once
    thumbnails: dict[int, Thumbnail] = {}
    deaths = 0
    while left and deaths < MAX_DEATHS and left_s > 0:
        done, took_s = _session(run, left, left_s)
        thumbnails |= done
        left = left[len(done) :]
        left_s -= took_s
        deaths += 1
    return thumbnails | dict.fromkeys(left, Thumbnail(why="left out, since the images before it took too long"))


def _session(run: RunDir, rows: list[int], left_s: float) -> tuple[dict[int, Thumbnail], float]:
    """Send `rows` to one process, until one of them ends it or the time is over.

    Returns the thumbnails, and the seconds since the process was ready. If it does not start, each row has a reason.
    """
    thumbnails: dict[int, Thumbnail] = {}
    with Child("clipbatch.tools.htmlreport.thumbnails_main", str(run.path), max_line_bytes=_MAX_LINE) as child:
        try:
            child.receive(START_S)
        except (TimeoutError, EOFError):
            return dict.fromkeys(rows, Thumbnail(why="the process that makes thumbnails does not start")), 0.0
        start = time.monotonic()
        for row in rows:
            if time.monotonic() - start > left_s:
                break
            child.send(row)
            try:
                thumbnails[row] = thumbnail_of(child.receive(IMAGE_S))
            except TimeoutError:
                thumbnails[row] = Thumbnail(why="it took too long")
                break
            except EOFError:
                thumbnails[row] = Thumbnail(why="opening it ended the process")
                break
    return thumbnails, time.monotonic() - start


def thumbnail_of(answer: Any) -> Thumbnail:
    """The thumbnail in `answer`: `{"webp": base64}` or `{"why": words}`. Anything else is not trusted."""
    match answer:
        case {"webp": str(picture)} if _PICTURE.fullmatch(picture):
            return Thumbnail(base64=picture)
        case {"why": str(why)}:
            return Thumbnail(why=why)
    return Thumbnail(why="opening it ended the process")
