"""The few rows of each label that rank first by some key, kept while all rows pass by once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row with a label."""

    row_id: int
    uri: str
    score: float
    margin: float | None
    """Its score minus the second best; None where a part does not tell."""
    runner_up: str | None
    """The label with the second best score."""


class Ranking:
    """For each label the `most` rows with the highest keys; among equals the earliest."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[int, list[tuple[float, Example]]] = {}
        self._bars = np.zeros(0)
        """The key that a row has to exceed, by label."""

    def offer(self, label_B: NDArray[np.int64], key_B: NDArray[np.float32], make: Callable[[int], Example]) -> None:
        """Rows in order: their labels' numbers and keys. make: the example in slot b, asked for those kept only."""
        if not len(label_B) or not self._most:
            return
        missing = int(label_B.max()) + 1 - len(self._bars)
        self._bars = np.append(self._bars, np.full(max(missing, 0), -np.inf))
        slots = np.flatnonzero(key_B > self._bars[label_B])
        slots = slots[np.lexsort((slots, -key_B[slots], label_B[slots]))]
        labels = label_B[slots]
        rank = np.arange(len(slots)) - np.searchsorted(labels, labels)
        for slot in slots[rank < self._most].tolist():
            self._kept.setdefault(int(label_B[slot]), []).append((float(key_B[slot]), make(slot)))
        for label in np.unique(labels).tolist():
            kept = sorted(self._kept[label], key=lambda entry: -entry[0])[: self._most]
            self._kept[label] = kept
            if len(kept) == self._most:
                self._bars[label] = kept[-1][0]

    def of(self, label: int) -> list[Example]:
        """The first rows of a label, best first."""
        return [example for _, example in self._kept.get(label, [])]
