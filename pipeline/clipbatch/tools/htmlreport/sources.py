"""What a page is about: a run, or the latest row of each image in the increments of a dataset, but of deleted ones.

Increments number their rows each from 0, so on the page of a dataset the rows of one follow those of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.errors import OtherRunError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import latest
from clipbatch.tools.htmlreport import rankings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A run on the page."""

    run: RunDir
    plan: Plan
    # The number, on the page, of the run's row 0.
    first: int = 0
    # For each row, whether it is the latest of its image; None: all are.
    latest: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> int:
        """How many rows of the run belong on the page, those included that are not done yet."""
        return self.plan.rows if self.latest is None else int(self.latest.sum())

    def counted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of `batch` that belong on the page, with their numbers there. Its first column is row_id."""
        if self.latest is None:
            return batch
        row_id = batch.column(0).to_numpy()
        moved = batch.set_column(0, "row_id", pa.array(row_id + self.first))
        return moved.filter(pa.array(self.latest[row_id]))


def sources(paths: Sequence[str]) -> list[Source]:
    """paths: a run directory, or the increments of a dataset, oldest first.

    Raises: InputError if one cannot be read; OtherRunError if the labels or the columns of two differ.
    """
    runs = [RunDir(path) for path in paths]
    plans = [run.plan() for run in runs]
    if len(runs) == 1:
        return [Source(run=runs[0], plan=plans[0])]
    for run, plan in zip(runs, plans, strict=True):
        if rankings.find(plan) != rankings.find(plans[-1]):
            raise OtherRunError(
                f"{run.path} has other labels or columns than {runs[-1].path}, so one page cannot show both: name one "
                "of them"
            )
    rows = latest.latest([Path(path) for path in paths])
    mask = rows.mask(rows.numbers)
    mask[latest.read_deleted(Path(paths[0]).parent, rows)] = False
    starts = rows.starts.values()
    return [
        Source(run=run, plan=plan, first=first, latest=mask[first : first + plan.rows])
        for run, plan, first in zip(runs, plans, starts, strict=True)
    ]


def row_name(sources: Sequence[Source], row: int) -> str:
    """How a row is called on the page: its row_id, after the increment's name if there are several."""
    if len(sources) == 1:
        return str(row)
    source = max((source for source in sources if source.first <= row), key=lambda source: source.first)
    return f"{source.run.path.name}: {row - source.first}"


def by_source(sources: Sequence[Source], rows: Iterable[int]) -> Iterator[tuple[Source, list[int]]]:
    """Each source with those of `rows`, numbers of the page, that belong to it, as row_ids; without empty ones."""
    wanted = sorted(set(rows))
    for source in sources:
        own = [row - source.first for row in wanted if source.first <= row < source.first + source.plan.rows]
        if own:
            yield source, own
