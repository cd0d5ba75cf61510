"""What the report page shows of captions: how many were compared, the similarities, and the pairs at both ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.rundir.captions import CaptionColumn, count
from clipbatch.rundir.schema import SIMILARITY
from clipbatch.tools.htmlreport.rankings import Example, Ranking
from clipbatch.tools.htmlreport.series import Histogram

# Characters of a caption that a page shows.
_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Example):
    """An image and its caption; the score is their similarity."""

    caption: str


def _shortened(caption: str) -> str:
    """The beginning of a caption, with a space for each run of white space, as the model reads it."""
    text = " ".join(caption.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2].rstrip()} …"


class CaptionFacts:
    """The numbers and examples of a run's captions."""

    def __init__(self, column: CaptionColumn, examples: int) -> None:
        self.similarities, self.counts = Histogram(), Counter[str]()
        self._column = column
        self._highest, self._lowest = Ranking(examples), Ranking(examples)

    @property
    def columns(self) -> list[str]:
        """The columns to read beside those that all rows have."""
        return [SIMILARITY, self._column.name]

    @property
    def highest(self) -> list[Example]:
        """The most similar pairs, at most half of all."""
        return self._highest.of(0)[: -(-self.similarities.total // 2)]

    @property
    def lowest(self) -> list[Example]:
        """The least similar pairs. None of them is in `highest`."""
        shown = {pair.row_id for pair in self.highest}
        return [pair for pair in self._lowest.of(0) if pair.row_id not in shown]

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of `batch`, whose images are all ok."""
        table = pa.Table.from_batches([batch])
        self.counts.update(count(table, self._column))
        compared = table.filter(pc.is_valid(table[SIMILARITY]))
        similarity_B = compared[SIMILARITY].to_numpy()
        self.similarities.add(similarity_B)

        def make(slot: int) -> Pair:
            (caption,) = self._column.captions(compared.slice(slot, 1))
            return Pair(
                row_id=compared["row_id"][slot].as_py(),
                uri=compared["uri"][slot].as_py(),
                score=float(similarity_B[slot]),
                margin=None,
                runner_up=None,
                caption=_shortened(caption or ""),
            )

        group_B = np.zeros(len(similarity_B), np.int64)
        self._highest.offer(group_B, similarity_B, make)
        self._lowest.offer(group_B, -similarity_B, make)
