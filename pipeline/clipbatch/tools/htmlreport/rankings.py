"""Which columns of a part belong to which label group, and the second best label that they tell of.

The few rows of each label that rank first by some key, kept while all rows pass by once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.rundir.layout import Plan
from clipbatch.rundir.schema import group_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumns:
    """The columns of one label group."""

    name: str
    """Of the group; empty where there is only one."""
    label: str
    score: str
    others: tuple[str, ...]
    """A list column, or a column for each of `labels`."""
    labels: tuple[str, ...]
    """In the order of the scores."""
    lists: str | None = None
    """The column with all labels of an image; None if an image has one at most."""

    @property
    def all(self) -> list[str]:
        """Everything to read."""
        return [self.label, self.score, *self.others, *([self.lists] if self.lists else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnersUp:
    """The second best label of each row."""

    score_B: NDArray[np.float32]
    margin_B: NDArray[np.float32]
    """The best score minus the second best."""
    index_B: NDArray[np.int64]
    """Into `names`."""
    names: list[str]


def find(plan: Plan) -> list[ScoreColumns]:
    """The columns of each label group of a run."""
    groups, names = plan.labels.groups, group_columns(plan.labels, plan.run_settings().output)
    return [
        ScoreColumns(
            name=group.name,
            label=found.label,
            score=found.score,
            others=found.scores,
            labels=tuple(group.names),
            lists=found.labels,
        )
        for group, found in zip(groups, names, strict=True)
    ]


def runners_up(columns: ScoreColumns, batch: pa.RecordBatch) -> RunnersUp | None:
    """The second best label of each row of `batch`, all of which have scores; None if only the best one is there."""
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
    """entries: the K best of each row, best first."""
    kept, rest = divmod(len(entries), rows)
    if rest or kept < 2:
        return None
    scores_BK = _floats(entries.field("score")).reshape(rows, kept)
    second = entries.field("label").take(pa.array(np.arange(rows) * kept + 1)).dictionary_encode()
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
