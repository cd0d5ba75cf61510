"""Throughput over time, from when each part was published: no state of its own, and true across invocations.

A part stands for rows that were done between the publication before it and its own. The first part of each stretch
of work has no such beginning, so it counts for no rate. A long silence between two parts is a pause, not slow work.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PAUSE_S = 60.0
_PAUSE_FACTOR = 10.0
"""A pause is longer than this many times the usual time between two parts."""
_STEPS = 48
_WIDTHS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of work at one mean rate."""

    start: float
    """Unix time, seconds."""
    worked_s: float
    """Where it starts on a clock that stands still in pauses."""
    seconds: float
    images_per_s: float
    pause_s: float
    """The pause right before it; 0 for none."""


def steps(published: Sequence[tuple[float, int]]) -> list[Step]:
    """About 48 steps of equal length; none where fewer than three parts tell.

    published: for each part, when (unix time) and how many rows, in any order.
    """
    parts = sorted(published)
    between = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(parts)]
    if len(parts) < 3 or not sum(between):
        return []
    usual = statistics.median(gap for gap in between if gap > 0)
    pause = max(_PAUSE_S, _PAUSE_FACTOR * usual)
    worked = sum(gap for gap in between if gap <= pause)
    if not worked:
        return []
    width = next((w for w in _WIDTHS_S if w >= max(worked / _STEPS, usual)), worked)
    found: list[Step] = []
    clock = 0.0
    for stretch, pause_s in _stretches(parts, between, pause):
        made = _of_stretch(stretch, width, clock, pause_s if found else 0.0)
        found += made
        clock += stretch[-1][0] - stretch[0][0] if made else 0.0
    return found


def _stretches(
    parts: list[tuple[float, int]], between: list[float], pause: float
) -> list[tuple[list[tuple[float, int]], float]]:
    """Parts between two pauses, with the length of the pause before them, seconds."""
    found = [([parts[0]], 0.0)]
    for part, gap in zip(parts[1:], between, strict=True):
        if gap > pause:
            found.append(([part], gap))
        else:
            found[-1][0].append(part)
    return found


def _of_stretch(stretch: list[tuple[float, int]], width: float, clock: float, pause_s: float) -> list[Step]:
    begin, end = stretch[0][0], stretch[-1][0]
    if end <= begin:
        return []
    times = np.array([at - begin for at, _ in stretch])
    done = np.cumsum([0, *(rows for _, rows in stretch[1:])])
    count = max(1, round((end - begin) / width))
    edges = np.linspace(0, end - begin, count + 1)
    at_edges = np.interp(edges, times, done)
    return [
        Step(
            start=begin + float(a),
            worked_s=clock + float(a),
            seconds=float(b - a),
            images_per_s=float((n - m) / (b - a)),
            pause_s=0.0 if number else pause_s,
        )
        for number, (a, b, m, n) in enumerate(zip(edges, edges[1:], at_edges, at_edges[1:], strict=False))
    ]
