"""The outputs of a run's heads as columns, and whether the columns of a part agree with one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipbatch.config.heads import Head
from clipbatch.rundir.schema import head_fields


class HeadRows:
    """The outputs of all heads for the rows of a row group. Its array is filled in place and reused."""

    def __init__(self, heads: Sequence[Head], capacity: int) -> None:
        self._heads = heads
        self._values_BO = np.empty((capacity, sum(len(head.outputs) for head in heads)), np.float32)
        self._splits = np.cumsum([len(head.outputs) for head in heads])[:-1]

    def add(self, heads_BO: NDArray[np.float32], rows: slice) -> None:
        self._values_BO[rows] = heads_BO

    def columns(self, count: int, bad: NDArray[np.bool_]) -> list[pa.Array]:
        """The columns of all heads, in the order of `schema.head_fields`; null where `bad`."""
        columns: list[pa.Array] = []
        for head, values_BO in zip(self._heads, np.split(self._values_BO[:count], self._splits, axis=1), strict=True):
            if head.result == "classes":
                best_B = values_BO.argmax(axis=1).astype(np.int32)
                names = pa.array(head.outputs, pa.string())
                columns.append(pa.DictionaryArray.from_arrays(pa.array(best_B, mask=bad), names))
                columns.append(pa.array(values_BO.max(axis=1), mask=bad))
                columns.append(lists(np.ascontiguousarray(values_BO), bad))
            else:
                columns += [pa.array(column, mask=bad) for column in np.ascontiguousarray(values_BO.T)]
        return columns


def lists(values: NDArray[Any], bad: NDArray[np.bool_]) -> pa.FixedSizeListArray:
    """A row of `values` for each row, null where it is bad."""
    mask = pa.array(bad) if bad.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=mask)


def head_problem(table: pa.Table, ok: pa.ChunkedArray, head: Head) -> str | None:
    """What is wrong with the head's columns in a part, in words; None if nothing is. ok: the rows that have scores."""
    names = [field.name for field in head_fields(head)]
    for name in names:
        if name not in table.column_names:
            return f"it has no column {name}"
        if not pc.is_valid(table[name]).equals(ok):
            return f"its {name} does not match its status"
    if head.result != "classes" or not len(good := table.filter(ok)):
        return None
    label, score, scores = (good[name].combine_chunks() for name in names)
    values_BO = np.asarray(scores.flatten()).reshape(len(good), -1)
    best = pa.array(head.outputs, pa.string()).take(pa.array(values_BO.argmax(axis=1)))
    if not label.cast(pa.string()).equals(best) or not np.array_equal(np.asarray(score), values_BO.max(axis=1)):
        return f"its {names[0]} and {names[1]} do not match its {names[2]}"
    return None
