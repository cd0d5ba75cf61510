"""How fast a run has been, from the times at which its parts were published. So it covers all invocations of a run.

A part stands for the rows done since the part before it was published. The first part of a stretch of work has no such
beginning and gives no rate. A long time between two parts is a pause, not slow work. In a copy that did not keep the
files' times, all parts have nearly the same one, and there is no rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipbatch.workers.progress import MIN_RATE_S

_PAUSE_S = 60.0
# A pause is longer than this many times the usual time between two parts, and than `_PAUSE_S`.
_PAUSE_FACTOR = 10.0


def usual_and_pause(between: NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """The usual time between two parts, and the time above which it is a pause. between: seconds, not all of them 0."""
    gaps = np.asarray(between, np.float64)
    usual = float(np.median(gaps[gaps > 0]))
    return usual, max(_PAUSE_S, _PAUSE_FACTOR * usual)


def overall(published: Sequence[tuple[float, int]]) -> float | None:
    """Images a second while somebody worked; None if that is too short a time to tell.

    published: for each part the time (unix time, seconds) and its number of rows, in any order.
    """
    if len(published) < 2:
        return None
    times, rows = np.array(sorted(published), np.float64).T
    between = np.diff(times)
    if not between.any():
        return None
    worked = between <= usual_and_pause(between)[1]
    seconds = float(between[worked].sum())
    return float(rows[1:][worked].sum()) / seconds if seconds >= MIN_RATE_S else None
