"""Which columns of a part hold a label, its score and the scores beside it, by name and type; and the second best.

A set of labels has the columns `label` and `score`, or `NAME_label` and `NAME_score` where a run has several sets. The
other scores stand in a list (`scores`), in a list of the best labels (`top`), or in a column a label (`score_LABEL`);
each with the set's name before it. Columns that a user's manifest carried along are told apart by their types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumns:
    """The columns of one set of labels."""

    name: str
    """Of the set; empty where there is only one."""
    label: str
    score: str
    others: tuple[str, ...]
    """A list column, or a column for each of `labels`; empty where a part has neither."""
    labels: tuple[str, ...]
    """In the order of the scores, as the part's footer has them."""

    @property
    def all(self) -> list[str]:
        """Everything to read."""
        return [self.label, self.score, *self.others]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnersUp:
    """The second best label of each row."""

    score_B: NDArray[np.float32]
    margin_B: NDArray[np.float32]
    """The best score minus the second best."""
    index_B: NDArray[np.int64]
    """Into `names`."""
    names: list[str]


def find(schema: pa.Schema, footer: Mapping[bytes, bytes]) -> list[ScoreColumns]:
    """The sets of labels of a part, in the order of its columns."""
    found = []
    for field in schema:
        prefix = field.name.removesuffix("label")
        is_label = field.name == f"{prefix}label" and (not prefix or prefix.endswith("_"))
        if is_label and pa.types.is_dictionary(field.type) and _is(schema, f"{prefix}score", pa.types.is_float32):
            name = prefix.removesuffix("_")
            labels = _labels(footer, name)
            others = _others(schema, prefix, labels)
            found.append(
                ScoreColumns(name=name, label=field.name, score=f"{prefix}score", others=others, labels=labels)
            )
    return found


def _others(schema: pa.Schema, prefix: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    for name in (f"{prefix}scores", f"{prefix}top"):
        if _is(schema, name, lambda kind: pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
            return (name,)
    wide = tuple(f"{prefix}score_{label}" for label in labels)
    return wide if all(_is(schema, name, pa.types.is_floating) for name in wide) else ()


def _is(schema: pa.Schema, name: str, kind: Any) -> bool:
    at = schema.get_field_index(name)
    return at >= 0 and bool(kind(schema.field(at).type))


def _labels(footer: Mapping[bytes, bytes], name: str) -> tuple[str, ...]:
    found = json.loads(footer.get(b"clipbatch.labels", b"[]"))
    return tuple(found.get(name, ()) if isinstance(found, dict) else found)


def runners_up(columns: ScoreColumns, batch: pa.RecordBatch) -> RunnersUp | None:
    """The second best label of each row of `batch`, all of which have scores; None where the part does not tell."""
    if not columns.others or not batch.num_rows:
        return None
    first = batch.column(columns.others[0])
    entries = first.flatten() if len(columns.others) == 1 else None
    if entries is not None and pa.types.is_struct(entries.type):
        return _second_of_top(entries, batch.num_rows)
    if entries is not None:
        scores_BL = _floats(entries).reshape(batch.num_rows, -1).copy()
    else:
        scores_BL = np.stack([_floats(batch.column(name)) for name in columns.others], axis=1)
    if scores_BL.shape[1] < 2 or scores_BL.shape[1] != len(columns.labels):
        return None
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
