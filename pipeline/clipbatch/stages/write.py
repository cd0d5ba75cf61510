"""Writes scored batches: one Parquet part for each shard, with all rows of the shard in manifest order.

A part is written row group by row group into a file without its final name, so a whole shard is never in memory. The
part gets its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.errors import InputError
from clipbatch.rundir import captions, replacement
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.part_file import PartFile, rows_per_group
from clipbatch.rundir.row_group import RowGroup
from clipbatch.rundir.schema import layout_of
from clipbatch.storage.paths import parquet_source
from clipbatch.types import PartDone, ScoredBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of writing a batch."""

    rows: int
    # The rows without scores, by status.
    bad: Counter[str]
    # The part, with the last batch of a shard.
    part: PartDone | None


class Write:
    """A stage for one thread: takes each `ScoredBatch`, in order."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        *,
        fingerprint: str,
        score: str,
        embedding: int,
        row_group_rows: int | None = None,
    ) -> None:
        """score: how scores are computed, for the footer. embedding: the length of an embedding. row_group_rows: the
        maximum of rows in a row group; None: `rows_per_group`."""
        self._run, self._plan = run, plan
        labels, settings = plan.labels, plan.run_settings()
        output = settings.output
        self._captions = captions.column_of(run, plan)
        compares = self._captions is not None
        row_bytes = len(labels.names) * 4 + (embedding * 2 * (1 + compares) if output.embeddings else 0) + 8 * compares
        row_bytes += sum(len(head.outputs) for head in plan.heads) * 4
        row_group_rows = row_group_rows or rows_per_group(max(1, row_bytes))
        batches = min(plan.shard_size, row_group_rows) // plan.batch_size
        capacity = max(1, batches) * plan.batch_size
        self._rows = RowGroup(
            labels, output, capacity=capacity, embedding=embedding, heads=plan.heads, captions=compares
        )
        self._compression, self._fingerprint = output.compression, fingerprint
        self._footer = {
            "clipbatch.fingerprint": fingerprint,
            "clipbatch.shards": str(plan.shards),
            "clipbatch.model": settings.model.model,
            "clipbatch.pretrained": settings.model.pretrained or "",
            "clipbatch.score": score,
            "clipbatch.layout": layout_of(output),
            "clipbatch.labels": _json(labels.by_group([group.names for group in labels.groups])),
            "clipbatch.threshold": _json(labels.by_group([group.threshold for group in labels.groups])),
        }
        if any(group.thresholds or group.multiple for group in labels.groups):
            thresholds = [dict(zip(group.names, group.cutoffs, strict=True)) for group in labels.groups]
            self._footer["clipbatch.thresholds"] = _json(labels.by_group(thresholds))
        if output.layout == "wide":
            columns = [
                dict(zip(group.names, names.scores, strict=True))
                for group, names in zip(labels.groups, self._rows.groups, strict=True)
            ]
            self._footer["clipbatch.columns"] = _json(labels.by_group(columns))
        if plan.heads:
            self._footer["clipbatch.heads"] = _json({head.name: head.outputs for head in plan.heads})
        self._part: PartFile | None = None
        self._counts: Counter[str] = Counter()
        self._compared: Counter[str] = Counter()
        self._again: list[pa.Table] = []

    def __call__(self, batch: ScoredBatch) -> Written:
        """Raises: InputError if the part cannot be written; DamagedError if the task names rows of a part that is
        damaged. Nothing of the new part stays then."""
        try:
            return self._add(batch)
        except BaseException:
            if self._part is not None:
                self._part.__exit__(*sys.exc_info())
            raise

    def _add(self, batch: ScoredBatch) -> Written:
        source = batch.source
        rows, bad = self._rows.add(batch)
        if source.last or self._rows.filled + self._plan.batch_size > self._rows.capacity:
            table = self._rows.take()
            if source.whole:
                self._write(source.shard, table)
            else:
                self._again.append(table.take(np.arange(table.num_rows)))  # a copy, as the buffers are reused
        part = None
        if source.last:
            for table in self._merged(source.shard):
                self._write(source.shard, table)
            part = self._publish(source.shard, force=source.force)
        return Written(rows=rows, bad=bad, part=part)

    def _write(self, shard: int, table: pa.Table) -> None:
        if self._part is None:
            path = self._run.part(shard, self._plan.shards)
            footer = self._footer | {"clipbatch.shard": str(shard)}
            self._part = PartFile(path, table.schema.with_metadata(footer), self._compression)
        self._part.write(table)
        counted = table["status"].value_counts().to_pylist()
        self._counts.update({entry["values"]: entry["counts"] for entry in counted})
        if self._captions:
            self._compared.update(captions.count(table, self._captions))

    def _merged(self, shard: int) -> Iterator[pa.Table]:
        """The row groups of the existing part, with the rows that were done again in their places.

        A row that is ok in the existing part stays even if it failed this time: another process may have done it since.
        """
        if not self._again:
            return
        again, self._again = pa.concat_tables(self._again), []
        data = replacement.read_whole(self._run, self._plan, shard, self._fingerprint)
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            for number in range(file.num_row_groups):
                old = file.read_row_group(number).cast(again.schema)
                old_ids = old["row_id"].to_numpy()
                good_ids = old.filter(_is_ok(old))["row_id"].to_numpy()
                lost = np.isin(again["row_id"].to_numpy(), good_ids) & ~_is_ok(again).to_numpy(zero_copy_only=False)
                new = again.filter(pa.array(np.isin(again["row_id"].to_numpy(), old_ids) & ~lost))
                rest = old.filter(pa.array(~np.isin(old_ids, new["row_id"].to_numpy())))
                yield pa.concat_tables([rest, new]).sort_by("row_id").unify_dictionaries().combine_chunks()

    def _publish(self, shard: int, *, force: bool) -> PartDone:
        """Give the part its final name, unless an existing part is better. force: replace any existing part."""
        assert self._part is not None
        part, self._part = self._part, None
        counts, self._counts = dict(self._counts), Counter()
        compared, self._compared = dict(self._compared), Counter()
        footer = {"clipbatch.counts": json.dumps(counts, sort_keys=True)}
        if self._captions:
            footer[captions.FOOTER] = json.dumps(compared, sort_keys=True)
        path = self._run.part(shard, self._plan.shards)
        with part:
            kept = None if force else replacement.refusal(path, shard, counts)
            if kept is None:
                part.close(footer)
        return PartDone(shard=shard, rows=sum(counts.values()), counts=counts, kept=kept)

    def withdraw(self, shard: int) -> None:
        """Remove the part of `shard` that has just been published, if another run has replaced this one meanwhile.

        A run with the same settings keeps it: its own part has the same bytes. Suppresses errors: `verify` names a part
        that stays.
        """
        path = self._run.part(shard, self._plan.shards)
        with contextlib.suppress(OSError, pa.ArrowException, InputError):
            footer = pq.read_metadata(parquet_source(path)).metadata or {}
            if footer.get(b"clipbatch.fingerprint") == self._fingerprint.encode() and not self._is_planned():
                path.unlink()

    def _is_planned(self) -> bool:
        try:
            return self._run.plan().fingerprint == self._plan.fingerprint
        except InputError:
            return False


def _is_ok(table: pa.Table) -> pa.Array:
    return pc.equal(table["status"].cast(pa.string()), "ok").combine_chunks()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
