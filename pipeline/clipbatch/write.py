"""Scored batches -> one Parquet part a shard, published whole. Every row of the shard is in it, in order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.atomic import publish
from clipbatch.places import parquet_source
from clipbatch.rundir import Plan, RunDir
from clipbatch.schema import part_schema, result_fields
from clipbatch.seal import seal
from clipbatch.types import STATUSES, Decoded, PartDone, Reject, ScoredBatch

_DECODERS = ["dali", "torchvision", "pil"]
_ROW_GROUP_VALUES = 2**24
"""Scores in a row group, 64 MiB: a reader's unit of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of a batch."""

    rows: int
    bad: int
    part: PartDone | None
    """Set with the last batch of a shard."""


class Write:
    """Called with a `ScoredBatch`, by one thread, in order."""

    def __init__(self, run: RunDir, plan: Plan, *, fingerprint: str, score: str, embedding: int) -> None:
        """score: how scores are made, as the footer says it. embedding: its length."""
        self._run, self._plan = run, plan
        self._labels = plan.labels.names
        settings = plan.run_settings()
        best = settings.output.best
        self._top_k = min(best, len(self._labels)) if best else None
        self._results = result_fields(self._labels, settings.output, embedding)
        self._footer = {
            "clipbatch.fingerprint": fingerprint,
            "clipbatch.shards": str(plan.shards),
            "clipbatch.model": settings.model.model,
            "clipbatch.pretrained": settings.model.pretrained or "",
            "clipbatch.score": score,
            "clipbatch.labels": json.dumps(self._labels, ensure_ascii=False),
        }
        self._tables: list[pa.Table] = []

    def __call__(self, batch: ScoredBatch) -> Written:
        wanted = [slot for slot, outcome in enumerate(batch.outcomes) if outcome is not None]
        table = self._table(batch, wanted)
        self._tables.append(table)
        bad = sum(isinstance(batch.outcomes[slot], Reject) for slot in wanted)
        part = self._publish(batch.source.shard) if batch.source.last else None
        return Written(rows=len(wanted), bad=bad, part=part)

    def _table(self, batch: ScoredBatch, wanted: list[int]) -> pa.Table:
        rows = batch.source.rows
        if len(wanted) < rows.num_rows:
            rows = rows.take(wanted)
        outcomes = [outcome for outcome in batch.outcomes if outcome is not None]
        rejects = [outcome if isinstance(outcome, Reject) else None for outcome in outcomes]
        decoded = [outcome if isinstance(outcome, Decoded) else None for outcome in outcomes]
        bad = np.array([reject is not None for reject in rejects], bool)
        scores_BL = batch.scores_BL[wanted]
        best_B = scores_BL.argmax(axis=1)
        columns: list[Any] = [
            rows["row_id"],
            rows["uri"],
            _words([reject.status if reject else "ok" for reject in rejects], list(STATUSES)),
            pa.array([reject.error if reject else None for reject in rejects], pa.string()),
            pa.array([_int32(outcome.width) for outcome in outcomes], pa.int32()),
            pa.array([_int32(outcome.height) for outcome in outcomes], pa.int32()),
            _words([facts.decoder if facts else None for facts in decoded], _DECODERS),
            pa.DictionaryArray.from_arrays(pa.array(best_B.astype(np.int32), mask=bad), pa.array(self._labels)),
            pa.array(scores_BL[np.arange(len(best_B)), best_B], mask=bad),
            self._top(scores_BL, bad) if self._top_k else _lists(scores_BL, bad),
        ]
        if batch.image_BD is not None:
            columns.append(_lists(batch.image_BD[wanted], bad))
        columns += rows.columns[2:]
        return pa.Table.from_arrays(columns, schema=part_schema(self._results, rows.schema))

    def _top(self, scores_BL: NDArray[np.float32], bad: NDArray[np.bool_]) -> pa.Array:
        """The K best labels of each row, best first; ties in label order."""
        assert self._top_k
        order_BK = np.argsort(-scores_BL, axis=1, kind="stable")[:, : self._top_k]
        entries = pa.StructArray.from_arrays(
            [
                pa.array(self._labels).take(pa.array(order_BK.ravel())),
                pa.array(np.take_along_axis(scores_BL, order_BK, axis=1).ravel()),
            ],
            names=["label", "score"],
        )
        offsets = pa.array(np.arange(len(scores_BL) + 1, dtype=np.int32) * self._top_k)
        return pa.ListArray.from_arrays(offsets, entries, mask=pa.array(bad))

    def _publish(self, shard: int) -> PartDone:
        table, self._tables = pa.concat_tables(self._tables), []
        path = self._run.part(shard, self._plan.shards)
        if table.num_rows < len(self._plan.shard_rows(shard)):  # only the bad rows were done again
            old = pq.read_table(parquet_source(path), schema=table.schema)
            kept = ~np.isin(old["row_id"].to_numpy(), table["row_id"].to_numpy())
            table = pa.concat_tables([old.filter(pa.array(kept)), table]).sort_by("row_id")
        table = table.unify_dictionaries().combine_chunks()
        counts = {entry["values"]: entry["counts"] for entry in table["status"].value_counts().to_pylist()}
        footer = self._footer | {"clipbatch.shard": str(shard), "clipbatch.counts": json.dumps(counts, sort_keys=True)}
        buffer = pa.BufferOutputStream()
        pq.write_table(
            table.replace_schema_metadata(footer),
            buffer,
            compression="zstd",
            row_group_size=max(1024, _ROW_GROUP_VALUES // len(self._labels)),
            use_dictionary=["uri", "status", "error", "decoder", "label"],
            write_page_checksum=True,
        )
        with publish(path) as file:
            for piece in seal(memoryview(buffer.getvalue())):
                file.write(piece)
        return PartDone(shard=shard, rows=table.num_rows, counts=counts)


def _int32(value: int | None) -> int | None:
    """`value`, or None where a lying header states more than the column holds."""
    return value if value is not None and value < 2**31 else None


def _words(values: list[str | None], known: list[str]) -> pa.DictionaryArray:
    index = {word: number for number, word in enumerate(known)}
    indices = pa.array([None if value is None else index[value] for value in values], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array(known))


def _lists(values: NDArray[Any], bad: NDArray[np.bool_]) -> pa.FixedSizeListArray:
    """A row of `values` for each row, null where it is bad."""
    values = np.where(bad[:, None], values.dtype.type(0), values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=pa.array(bad))
