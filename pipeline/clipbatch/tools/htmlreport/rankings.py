"""Finds the second best label of each row, and the rows that rank first for each label.

The layouts of scores differ: `find` says which columns belong to which label group, and `runners_up` reads the second
best label from them. `Ranking` keeps a few rows for each label while all rows are read once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.schema import group_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumns:
    """The columns of one label group."""

    # The group's name; empty if there is only one group.
    name: str
    label: str
    score: str
    # The columns of all scores: one column of lists, or a column for each of `labels`.
    others: tuple[str, ...]
    # The labels, in the order of the scores.
    labels: tuple[str, ...]
    # The column with all labels of an image; None if an image has at most one.
    lists: str | None = None

    @property
    def all(self) -> list[str]:
        """All columns to read."""
        return [self.label, self.score, *self.others, *([self.lists] if self.lists else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnersUp:
    """The second best label of each row."""

    score_B: NDArray[np.float32]
    # The best score minus the second best.
    margin_B: NDArray[np.float32]
    # An index into `names` for each row.
    index_B: NDArray[np.int64]
    names: list[str]


def find(plan: Plan) -> list[ScoreColumns]:
    """The columns of each label group of a run."""
    groups, names = plan.labels.groups, group_columns(plan.labels, plan.run_settings().output)
    return [
        ScoreColumns(
            name=group.name,
            label=columns.label,
            score=columns.score,
            others=columns.scores,
            labels=tuple(group.names),
            lists=columns.labels,
        )
        for group, columns in zip(groups, names, strict=True)
    ]


def runners_up(columns: ScoreColumns, batch: pa.RecordBatch) -> RunnersUp | None:
    """The second best label of each row of `batch`. All rows must have scores. None: only the best label was saved."""
    if len(columns.labels) < 2:
        return None
    first = batch.column(columns.others[0])
    entries = first.flatten() if len(columns.others) == 1 else None
    if entries is not None and pa.types.is_struct(entries.type):
        return _second_of_top(entries, batch.num_rows)
    if entries is not None:
        scores_BL = _floats(entries).reshape(batch.num_rows, -1).copy()
    else:
        scores_BL = np.stack([_floats(batch.column(name)) for name in columns.others], axis=1)
    rows_B, best_B = np.arange(len(scores_BL)), scores_BL.argmax(axis=1)
    top_B = scores_BL[rows_B, best_B]
    scores_BL[rows_B, best_B] = -np.inf
    index_B = scores_BL.argmax(axis=1)
    second_B = scores_BL[rows_B, index_B]
    return RunnersUp(score_B=second_B, margin_B=top_B - second_B, index_B=index_B, names=list(columns.labels))


def _second_of_top(entries: pa.StructArray, rows: int) -> RunnersUp | None:
    """entries: the K best labels of each row, best first."""
    per_row, rest = divmod(len(entries), rows)
    if rest or per_row < 2:
        return None
    scores_BK = _floats(entries.field("score")).reshape(rows, per_row)
    second = entries.field("label").take(pa.array(np.arange(rows) * per_row + 1)).dictionary_encode()
    return RunnersUp(
        score_B=scores_BK[:, 1],
        margin_B=scores_BK[:, 0] - scores_BK[:, 1],
        index_B=second.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        names=second.dictionary.to_pylist(),
    )


def _floats(values: pa.Array) -> NDArray[np.float32]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row with a label."""

    row_id: int
    uri: str
    score: float
    # The score minus the second best score; None if the part does not have that.
    margin: float | None
    # The label with the second best score.
    runner_up: str | None


class Ranking:
    """Keeps for each label the `size` rows with the highest keys. Of rows with equal keys, the first ones win."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._best: dict[int, list[tuple[float, Example]]] = {}
        # For each label, the key that a row has to exceed.
        self._thresholds = np.zeros(0)

    def offer(self, label_B: NDArray[np.int64], key_B: NDArray[np.float32], make: Callable[[int], Example]) -> None:
        """Offer rows, in order, with the numbers of their labels and their keys. make: called for rows that are kept,
        with their slot; returns the example."""
        if not len(label_B) or not self._size:
            return
        missing = int(label_B.max()) + 1 - len(self._thresholds)
        self._thresholds = np.append(self._thresholds, np.full(max(missing, 0), -np.inf))
        slots = np.flatnonzero(key_B > self._thresholds[label_B])
        slots = slots[np.lexsort((slots, -key_B[slots], label_B[slots]))]
        labels = label_B[slots]
        rank = np.arange(len(slots)) - np.searchsorted(labels, labels)
        for slot in slots[rank < self._size].tolist():
            self._best.setdefault(int(label_B[slot]), []).append((float(key_B[slot]), make(slot)))
        for label in np.unique(labels).tolist():
            best = sorted(self._best[label], key=lambda entry: -entry[0])[: self._size]
            self._best[label] = best
            if len(best) == self._size:
                self._thresholds[label] = best[-1][0]

    def of(self, label: int) -> list[Example]:
        """The rows of a label, best first."""
        return [example for _, example in self._best.get(label, [])]
