"""A uniform sample of a listing whose length nobody knows beforehand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.config.sampling import keys


class Sample:
    """The `count` rows with the smallest keys (`config.sampling`) of all that are added; holds about twice as many."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        # Rows that were added.
        self.rows = 0
        self._tables: list[pa.Table] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._held = 0
        # The largest key that can still be among the smallest.
        self._most = np.inf

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of the listing, in order, with the same columns every time."""
        numbers = np.arange(self.rows, self.rows + batch.num_rows)
        self.rows += batch.num_rows
        here = keys(numbers, self._seed) <= self._most
        self._tables.append(pa.Table.from_batches([batch.filter(pa.array(here))]))
        self._numbers.append(numbers[here])
        self._held += int(here.sum())
        if self._held > 2 * self._count + 4096:
            self._prune()

    def _prune(self) -> None:
        numbers = np.concatenate(self._numbers)
        order = np.argsort(keys(numbers, self._seed), kind="stable")[: self._count]
        self._tables = [pa.concat_tables(self._tables).unify_dictionaries().take(pa.array(order))]
        self._numbers, self._held = [numbers[order]], len(order)
        if len(order) == self._count:
            self._most = float(keys(numbers[order[-1:]], self._seed)[0])

    def batches(self, *, shuffled: bool = False) -> list[pa.RecordBatch]:
        """The rows of the sample, in the order of the listing, or in a random one."""
        if not self._tables:
            return []
        self._prune()
        order = np.arange(self._held) if shuffled else np.argsort(self._numbers[0], kind="stable")
        return list(self._tables[0].take(pa.array(order)).combine_chunks().to_batches())
