"""Summaries of numbers for the page's figures: throughput over time (`steps`), and distributions (`Histogram`).

Throughput is computed from the times at which parts were published, as `runs.pace` says.

A histogram counts values in fine bins, from which coarse bars and quantiles are computed. Its memory does not grow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipbatch.runs.pace import usual_and_pause

_STEPS = 48
_WIDTHS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of work with one mean rate."""

    # Unix time, seconds.
    start: float
    # The start on a clock that stops in pauses.
    worked_s: float
    seconds: float
    images_per_s: float
    # The pause just before it; 0: none.
    pause_s: float


def steps(published: Sequence[tuple[float, int]]) -> list[Step]:
    """About 48 steps of equal length; none if there are fewer than three parts.

    published: for each part the time (unix time, seconds) and its number of rows, in any order.
    """
    parts = sorted(published)
    between = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(parts)]
    if len(parts) < 3 or not sum(between):
        return []
    usual, pause = usual_and_pause(between)
    worked = sum(gap for gap in between if gap <= pause)
    if not worked:
        return []
    width = next((w for w in _WIDTHS_S if w >= max(worked / _STEPS, usual)), worked)
    result: list[Step] = []
    clock = 0.0
    for stretch, pause_s in _stretches(parts, between, pause):
        new = _of_stretch(stretch, width, clock, pause_s if result else 0.0)
        result += new
        clock += stretch[-1][0] - stretch[0][0] if new else 0.0
    return result


def _stretches(
    parts: list[tuple[float, int]], between: list[float], pause: float
) -> list[tuple[list[tuple[float, int]], float]]:
    """The parts of each stretch between two pauses, and the length of the pause before it in seconds."""
    stretches = [([parts[0]], 0.0)]
    for part, gap in zip(parts[1:], between, strict=True):
        if gap > pause:
            stretches.append(([part], gap))
        else:
            stretches[-1][0].append(part)
    return stretches


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


# The width of a fine bin. Quantiles are exact to this.
STEP = 1e-4
# Scores are in -1..1 (cosine) or 0..1, margins in 0..2. The bins cover both; values beyond count in the outer bins.
_LOW, _HIGH = -1.0, 2.0
_BARS = 40
_NICE = (1, 2, 2.5, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The number of values from `low` up to, but not including, `high`."""

    low: float
    high: float
    count: int


class Histogram:
    """Counts values, batch by batch."""

    def __init__(self) -> None:
        self._counts = np.zeros(round((_HIGH - _LOW) / STEP) + 1, np.int64)
        self.not_a_number = 0

    def add(self, values: NDArray[np.float32]) -> None:
        valid = values[~np.isnan(values)].astype(np.float64)
        self.not_a_number += len(values) - len(valid)
        # A float32 such as 0.3 is slightly off, and would fall into the bin below without the added thousandth.
        steps = np.floor((valid - _LOW) / STEP + 1e-3).clip(0, len(self._counts) - 1).astype(np.int64)
        self._counts += np.bincount(steps, minlength=len(self._counts))

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    def quantile(self, share: float) -> float:
        """The value that `share` (0 to 1) of all values do not exceed, rounded down to its bin.

        It lies a little above the bin's edge, so that three decimals of it are those of every value in the bin: 0.1195
        as a float lies below, and would become 0.119.
        """
        at = np.searchsorted(self._counts.cumsum(), max(1, np.ceil(share * self.total)))
        return round(_LOW + int(at) * STEP + STEP * 1e-3, 7)

    def bars(self, *, zoom: bool = False) -> list[Bar]:
        """40 bars from 0 to 1; about 40 over the range of the values if that is wider, or with `zoom`."""
        if not self.total:
            return []
        used = np.flatnonzero(self._counts)
        low, high = _LOW + used[0] * STEP, _LOW + (used[-1] + 1) * STEP
        if low >= -STEP / 2 and high <= 1 + 1.5 * STEP and not zoom:
            low, high = 0.0, 1.0
        width = _nice((high - low) / _BARS)
        steps = round(width / STEP)
        first, last = np.floor(low / width + 1e-9), np.ceil(high / width - 1e-9)
        edges = [round(number * width, 4) for number in range(int(first), int(max(last, first + 1)) + 1)]
        counts = [self._between(edge, steps) for edge in edges[:-1]]
        counts[-1] += self._between(edges[-1], 1) if edges[-1] == 1.0 else 0  # the last bar takes 1.0 itself
        return [Bar(low=a, high=b, count=n) for a, b, n in zip(edges, edges[1:], counts, strict=False)]

    def _between(self, low: float, steps: int) -> int:
        at = round((low - _LOW) / STEP)
        return int(self._counts[max(at, 0) : max(at + steps, 0)].sum())


def _nice(width: float) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that is not below `width`, and at least a step."""
    power = 10.0 ** np.floor(np.log10(max(width, STEP)))
    return float(next((n * power for n in _NICE if n * power >= width * 0.999), 10 * power))
