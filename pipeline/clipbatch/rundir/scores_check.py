"""Whether the columns of a label group agree with one another: scores, label, labels and margin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipbatch.config.label_set import LabelGroup
from clipbatch.rundir.row_group import chosen_labels, cutoffs, margins
from clipbatch.rundir.schema import GroupColumns


def group_problem(table: pa.Table, ok: pa.ChunkedArray, group: LabelGroup, columns: GroupColumns) -> str | None:
    """What is wrong with the group's columns in a part, in words; None if nothing is. ok: the rows that have scores."""
    own = [columns.score, *columns.scores, *(name for name in (columns.labels, columns.margin) if name)]
    for name in own:
        if name not in table.column_names:
            return f"it has no column {name}"
        alone = name == columns.margin and len(group.names) == 1
        if table[name].null_count != len(table) if alone else not pc.is_valid(table[name]).equals(ok):
            return f"its {name} does not match its status"
    scores_BL = stored_scores(table.filter(ok), columns)
    if group.multiple:
        assert columns.labels
        if wrong := _labels_problem(table.filter(ok), group, columns, scores_BL):
            return wrong
        has_label = pc.fill_null(pc.greater(pc.list_value_length(table[columns.labels]), 0), False)
    else:
        has_label = _labelled(table, ok, group, columns)
    if not pc.is_valid(table[columns.label]).equals(has_label):
        return f"its {columns.label} does not match its status and {columns.score}"
    if columns.margin and scores_BL is not None and scores_BL.shape[1] > 1:
        margin_B = table.filter(ok)[columns.margin].to_numpy()
        if not np.array_equal(margins(scores_BL, scores_BL.argmax(axis=1)), margin_B):
            return f"its {columns.margin} does not match its {columns.scores[0]}"
    return None


def stored_scores(table: pa.Table, columns: GroupColumns) -> NDArray[np.float32] | None:
    """`scores_BL` as the part holds them in float32, of all labels or of the best ones; None where it has rounded them,
    or holds only the best one. table: rows with scores."""
    first = table[columns.scores[0]].combine_chunks()
    if len(columns.scores) > 1 or pa.types.is_floating(first.type):
        if first.type != pa.float32():
            return None
        return np.stack([table[name].to_numpy() for name in columns.scores], axis=1)
    values = first.flatten()
    if pa.types.is_struct(values.type):
        values = values.field("score")
    if values.type != pa.float32() or not len(table):
        return None
    return np.asarray(values.to_numpy()).reshape(len(table), -1)


def _labelled(table: pa.Table, ok: pa.ChunkedArray, group: LabelGroup, columns: GroupColumns) -> Any:
    """The rows that have a label: those whose best score is at or above the threshold of its label."""
    if not group.thresholds:
        if group.threshold is None:
            return ok
        sure = pc.greater_equal(table[columns.score], pa.scalar(group.threshold, pa.float32()))
        return pc.fill_null(sure, False)
    scores_BL = stored_scores(table.filter(ok), columns)
    is_top = pa.types.is_list(table[columns.scores[0]].type)
    if scores_BL is None or is_top:  # nothing tells which label is the best one
        return pc.and_(pc.is_valid(table[columns.label]), ok)
    best_B, has_label = scores_BL.argmax(axis=1), np.zeros(len(table), bool)
    has_label[np.asarray(ok)] = scores_BL[np.arange(len(best_B)), best_B] >= cutoffs(group)[best_B]
    return pa.chunked_array([pa.array(has_label)])


def _labels_problem(
    table: pa.Table, group: LabelGroup, columns: GroupColumns, scores_BL: NDArray[np.float32] | None
) -> str | None:
    """table: rows with scores."""
    assert columns.labels
    lists = table[columns.labels].combine_chunks()
    has_any = pc.greater(pc.list_value_length(lists), 0)
    first = pc.list_element(lists.filter(has_any), 0)
    if not table[columns.label].combine_chunks().cast(pa.string()).filter(has_any).equals(first):
        return f"its {columns.label} is not the first of its {columns.labels}"
    if scores_BL is None or pa.types.is_list(table[columns.scores[0]].type):
        return None
    count_B, chosen = chosen_labels(scores_BL, cutoffs(group))
    counts_agree = np.array_equal(pc.list_value_length(lists).to_numpy(), count_B)
    if not counts_agree or not lists.flatten().equals(pa.array(group.names, pa.string()).take(pa.array(chosen))):
        return f"its {columns.labels} does not match its {columns.scores[0]}"
    return None
