"""Cuts the shard of a task into the batches that enter the first stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import LISTING
from clipbatch.types import Item, ItemBatch, Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A shard to process."""

    shard: int
    # Process only the rows with these row_ids; they replace the same rows of the existing part. None: all rows.
    rows: frozenset[int] | None = None
    # Rows, by row_id, that have killed a worker and must not be processed, and what to write for them.
    rejects: Mapping[int, Reject] = field(default_factory=dict)
    # The new part may replace one that has more ok rows.
    force: bool = False


def item_batches(plan: Plan, manifest: Manifest, task: Task, rows: pa.Table) -> Iterator[ItemBatch]:
    """The batches of a task that reads images. rows: all manifest rows of its shard.

    A row keeps its slot in the batch even if the task names only some rows, so its scores stay the same.
    """
    carried = rows.drop_columns(LISTING)
    size, first = plan.batch_size, plan.shard_rows(task.shard).start
    if task.rows is None:
        starts = list(range(0, rows.num_rows, size))
    else:
        starts = sorted({(row_id - first) // size * size for row_id in task.rows})
    # Items are made batch by batch: those of a whole shard take seconds, and the stages would wait meanwhile.
    for start in starts:
        items: list[Item | None] = list(manifest.items(rows.slice(start, size)))
        if task.rows is not None or task.rejects:
            items = [_item_to_read(item, task) for item in items if item]
        yield ItemBatch(
            shard=task.shard,
            start=first + start,
            items=tuple(items),
            rows=carried.slice(start, size),
            last=start == starts[-1],
            whole=task.rows is None,
            force=task.force,
        )


def _item_to_read(item: Item, task: Task) -> Item | None:
    """`item`, as a reject if the task says so; None if the task does not include it."""
    if task.rows is not None and item.row_id not in task.rows:
        return None
    if item.row_id in task.rejects:
        return item._replace(reject=task.rejects[item.row_id])
    return item


def row_batches(plan: Plan, manifest: Manifest, task: Task, rows: pa.Table) -> Iterator[ItemBatch]:
    """The batches of a task that reads no images. If it includes all rows, the batches have no items.

    rows: as for `item_batches`.
    """
    if task.rows is not None:
        yield from item_batches(plan, manifest, task, rows)
        return
    rows = rows.drop_columns(LISTING)
    first = plan.shard_rows(task.shard).start
    for start in range(0, rows.num_rows, plan.batch_size):
        piece = rows.slice(start, plan.batch_size)
        last = start + piece.num_rows == rows.num_rows
        yield ItemBatch(shard=task.shard, start=first + start, items=(), rows=piece, last=last, force=task.force)
