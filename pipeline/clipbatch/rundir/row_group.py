"""Scored batches -> a table of as many rows as a row group has. Its arrays are filled in place and reused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.config import OutputSettings
from clipbatch.config.label_set import LabelGroup, LabelSet
from clipbatch.rundir.schema import GroupColumns, group_columns, layout_of, part_schema, result_fields
from clipbatch.types import DECODERS, STATUSES, Decoded, Reject, ScoredBatch

_STATUS = {status: code for code, status in enumerate(STATUSES)}
_DECODER = {decoder: code for code, decoder in enumerate(DECODERS)}
_NO_FACTS = (-1, -1, -1)
# Up to so many best labels, searching for the best one repeatedly is faster than sorting.
_REPEATED_BEST = 32


class RowGroup:
    """Rows in the order in which they were added, up to `capacity` of them."""

    def __init__(self, labels: LabelSet, output: OutputSettings, *, capacity: int, embedding: int) -> None:
        """embedding: its length."""
        self.capacity, self.filled = capacity, 0
        self.groups = group_columns(labels, output)
        self._results = result_fields(self.groups, output, embedding)
        self._of_groups = [
            _GroupRows(group, columns, output, capacity)
            for group, columns in zip(labels.groups, self.groups, strict=True)
        ]
        self._splits = np.cumsum(labels.sizes)[:-1]
        self._rows: list[pa.Table] = []
        self._errors: dict[int, str] = {}
        self._status = np.empty(capacity, np.int32)
        self._decoder = np.empty(capacity, np.int32)
        self._width_height = np.empty((2, capacity), np.int32)
        self._image_BD = np.empty((capacity, embedding), np.float16) if output.embeddings else None

    def add(self, batch: ScoredBatch) -> tuple[int, Counter[str]]:
        """Add the batch's wanted rows. Returns how many there are, and the bad ones by status."""
        outcomes: Sequence[Any] = batch.outcomes
        rows, scores_BL, image_BD = batch.source.rows, batch.scores_BL, batch.image_BD
        if None in outcomes:
            wanted = [slot for slot, outcome in enumerate(outcomes) if outcome is not None]
            outcomes = [outcomes[slot] for slot in wanted]
            rows, scores_BL = rows.take(wanted), scores_BL[wanted]
            image_BD = None if image_BD is None else image_BD[wanted]
        here = slice(self.filled, self.filled + len(outcomes))
        self._rows.append(rows)
        bad = self._add_outcomes(outcomes, here)
        for group, part_BL in zip(self._of_groups, np.split(scores_BL, self._splits, axis=1), strict=True):
            group.add(part_BL, here)
        if self._image_BD is not None:
            self._image_BD[here] = image_BD
        self.filled = here.stop
        return len(outcomes), bad

    def _add_outcomes(self, outcomes: Sequence[Decoded | Reject], here: slice) -> Counter[str]:
        width, height = self._width_height[:, here]
        facts = [(o.width, o.height, _DECODER[o.decoder]) if type(o) is Decoded else _NO_FACTS for o in outcomes]
        width[:], height[:], self._decoder[here] = zip(*facts, strict=True)
        self._status[here] = 0
        rejects = [(slot, outcome) for slot, outcome in enumerate(outcomes) if type(outcome) is Reject]
        for slot, reject in rejects:
            width[slot], height[slot] = _pixels(reject.width), _pixels(reject.height)
            self._status[here.start + slot] = _STATUS[reject.status]
            self._errors[here.start + slot] = reject.error
        return Counter(reject.status for _, reject in rejects)

    def take(self) -> pa.Table:
        """The rows as a table, which shares their memory: use it before the next `add`."""
        count, self.filled = self.filled, 0
        rows, self._rows = pa.concat_tables(self._rows).unify_dictionaries().combine_chunks(), []
        errors, self._errors = self._errors, {}
        bad = self._status[:count] != 0
        width, height = self._width_height[:, :count]
        decoder = self._decoder[:count]
        columns = [
            rows["row_id"],
            rows["uri"],
            pa.DictionaryArray.from_arrays(pa.array(self._status[:count]), pa.array(STATUSES)),
            pa.array([errors.get(row) for row in range(count)] if errors else [None] * count, pa.string()),
            pa.array(width, mask=width < 0),
            pa.array(height, mask=height < 0),
            pa.DictionaryArray.from_arrays(pa.array(decoder, mask=decoder < 0), pa.array(DECODERS)),
        ]
        for group in self._of_groups:
            columns += group.columns(count, bad)
        if self._image_BD is not None:
            columns.append(_lists(self._image_BD[:count], bad))
        columns += rows.columns[2:]
        return pa.Table.from_arrays(columns, schema=part_schema(self._results, rows.schema))


class _GroupRows:
    """The scores of one label group."""

    def __init__(self, group: LabelGroup, columns: GroupColumns, output: OutputSettings, capacity: int) -> None:
        self._names, self._columns, self._layout = pa.array(group.names, pa.string()), columns, layout_of(output)
        kept = min(output.best or len(group.names), len(group.names))
        self._cutoff_L = cutoffs(group)
        self._best = np.empty(capacity, np.int32)
        self._score = np.empty(capacity, np.float32)
        self._margin = np.empty(capacity, np.float32)
        self._kept_BK = np.empty((capacity, kept), output.scores_dtype)
        self._order_BK = np.empty((capacity, kept), np.int32) if self._layout == "top-k" else None
        # Of each batch: how many labels each row has, and the numbers of these labels.
        self._chosen: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []
        assert len(columns.scores) == (kept if self._layout == "wide" else 1)

    def add(self, scores_BL: NDArray[np.float32], here: slice) -> None:
        row_B = np.arange(len(scores_BL))
        if self._order_BK is None:
            best_B = scores_BL.argmax(axis=1)
            self._kept_BK[here] = scores_BL
        else:
            order_BK = self._order_BK[here] = _best_first(scores_BL, self._order_BK.shape[1])
            self._kept_BK[here] = np.take_along_axis(scores_BL, order_BK, axis=1)
            best_B = order_BK[:, 0]
        if self._columns.margin:
            self._margin[here] = margins(scores_BL, best_B)
        if self._columns.labels:
            count_B, chosen = chosen_labels(scores_BL, self._cutoff_L)
            self._chosen.append((count_B, chosen))
            first_B = np.cumsum(count_B) - count_B
            has_B = count_B > 0
            best_B = np.array(best_B)
            best_B[has_B] = chosen[first_B[has_B]]
        self._best[here] = best_B
        self._score[here] = scores_BL[row_B, best_B]

    def columns(self, count: int, bad: NDArray[np.bool_]) -> list[pa.Array]:
        """The group's columns in the order of `GroupColumns.fields`; null where `bad`."""
        score, kept_BK = self._score[:count], self._kept_BK[:count]
        unsure = bad | (score < self._cutoff_L[self._best[:count]])
        label = pa.DictionaryArray.from_arrays(pa.array(self._best[:count], mask=unsure), self._names)
        columns = [label, pa.array(score, mask=bad)]
        if self._columns.labels:
            columns.append(self._lists_of_labels(bad))
        if self._columns.margin:
            alone = len(self._names) == 1
            columns.append(pa.array(self._margin[:count], mask=np.ones(count, bool) if alone else bad))
        if self._layout == "wide":
            return [*columns, *(pa.array(column, mask=bad) for column in np.ascontiguousarray(kept_BK.T))]
        if self._order_BK is None:
            return [*columns, _lists(kept_BK, bad)]
        names = self._names.take(pa.array(self._order_BK[:count].ravel()))
        entries = pa.StructArray.from_arrays([names, pa.array(kept_BK.ravel())], names=["label", "score"])
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * kept_BK.shape[1])
        return [*columns, pa.ListArray.from_arrays(offsets, entries, mask=pa.array(bad))]

    def _lists_of_labels(self, bad: NDArray[np.bool_]) -> pa.ListArray:
        counts, chosen = (np.concatenate(parts) for parts in zip(*self._chosen, strict=True))
        self._chosen = []
        counts, chosen = np.where(bad, 0, counts), chosen[~np.repeat(bad, counts)]
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, self._names.take(pa.array(chosen)), mask=pa.array(bad))


def cutoffs(group: LabelGroup) -> NDArray[np.float32]:
    """The threshold of each label; minus infinity for one without."""
    return np.array([-np.inf if cutoff is None else cutoff for cutoff in group.cutoffs], np.float32)


def margins(scores_BL: NDArray[np.float32], best_B: NDArray[Any]) -> NDArray[np.float32]:
    """The best score of each row minus its second best; NaN if there is one label. best_B: numbers of the best."""
    if scores_BL.shape[1] < 2:
        return np.full(len(scores_BL), np.nan, np.float32)
    row_B, others_BL = np.arange(len(scores_BL)), scores_BL.copy()
    others_BL[row_B, best_B] = -np.inf
    return np.asarray(scores_BL[row_B, best_B] - others_BL.max(axis=1))


def chosen_labels(
    scores_BL: NDArray[np.float32], cutoff_L: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The labels whose score is at or above their threshold: how many each row has, and the labels' numbers, row after
    row, each row's best first. Ties are in the order of the labels."""
    rows, labels = np.nonzero(scores_BL >= cutoff_L)
    order = np.lexsort((labels, -scores_BL[rows, labels], rows))
    return np.bincount(rows, minlength=len(scores_BL)), labels[order].astype(np.int32)


def _best_first(scores_BL: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Numbers of the `count` best labels of each row, best first. Ties are in the order of the labels."""
    if count > _REPEATED_BEST:
        return np.argsort(-scores_BL, axis=1, kind="stable")[:, :count].astype(np.int32)
    left_BL = scores_BL.copy()
    row_B = np.arange(len(left_BL))
    order_BK = np.empty((len(left_BL), count), np.int32)
    for place in range(count):
        order_BK[:, place] = best_B = left_BL.argmax(axis=1)
        left_BL[row_B, best_B] = -np.inf
    return order_BK


def _pixels(value: int | None) -> int:
    """`value`, or -1 if it is unknown, or if a header lies and states more than the column can hold."""
    return value if value is not None and value < 2**31 else -1


def _lists(values: NDArray[Any], bad: NDArray[np.bool_]) -> pa.FixedSizeListArray:
    """A row of `values` for each row, null where it is bad."""
    mask = pa.array(bad) if bad.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=mask)
