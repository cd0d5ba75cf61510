"""Draw rows at random, and say how far a share of them may be from that of all.

Rows are drawn by a hash of their numbers: the same seed draws the same rows, and only these have to be kept.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Standard deviations on each side of 95% of a normal distribution.
_Z_95 = 1.959963984540054


def keys(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each of `numbers`, as if drawn at random, other ones for another seed.

    The rows with the smallest keys are a uniform sample without replacement. splitmix64 (Steele et al. 2014).
    """
    start = np.uint64((seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64)
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) / 2.0**64)


def wilson(right: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share. right, count: may be fractions, as of a sample with weights."""
    if count <= 0:
        return 0.0, 1.0
    share, z2 = right / count, _Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z_95 / (1 + z2 / count) * math.sqrt(max(0.0, share * (1 - share)) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
