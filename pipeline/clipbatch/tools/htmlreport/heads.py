"""What the report page shows of heads: how many images each class has, and the mean and the range of other outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.config.heads import Head
from clipbatch.rundir.schema import head_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFacts:
    """The numbers of an output of a head. For a class: how many images it is the best of, and its mean score there."""

    name: str
    images: int
    mean_score: float | None
    lowest: float
    highest: float


class HeadTable(TypedDict):
    """The numbers of a head, in the form of `page.LabelTable`."""

    name: str
    result: str
    # Of classes those that are the best of an image, most frequent first; else all outputs.
    used: list[OutputFacts]
    unused: list[str]
    most_images: int
    images: int
    linked: dict[str, str]


class HeadFacts:
    """Counts the outputs of a head, batch by batch."""

    def __init__(self, head: Head) -> None:
        self.head = head
        names, size = [field.name for field in head_fields(head)], len(head.outputs)
        # The columns to read: of classes the best one and its score, else one for each output.
        self.columns = names[:2] if head.result == "classes" else names
        self._rows, self._numbers = 0, {name: number for number, name in enumerate(head.outputs)}
        self._images: NDArray[np.int64] = np.zeros(size, np.int64)
        self._sums: NDArray[np.float64] = np.zeros(size)
        self._lowest, self._highest = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of `batch`, whose images are all ok. Raises: KeyError if one lacks an output, or has another
        class than the head knows."""
        columns = [batch.column(name) for name in self.columns]
        if missing := [name for name, column in zip(self.columns, columns, strict=True) if column.null_count]:
            raise KeyError(missing[0])
        self._rows += batch.num_rows
        if self.head.result == "classes":
            label, score = columns
            numbers = np.array([self._numbers[name] for name in label.dictionary.to_pylist()], np.int64)
            class_B, score_B, size = numbers[np.asarray(label.indices)], np.asarray(score), len(self._images)
            self._images += np.bincount(class_B, minlength=size)
            self._sums += np.bincount(class_B, score_B, minlength=size)
            np.minimum.at(self._lowest, class_B, score_B)
            np.maximum.at(self._highest, class_B, score_B)
            return
        values_OB = np.stack([np.asarray(column) for column in columns])
        self._images += batch.num_rows
        self._sums += values_OB.sum(axis=1, dtype=np.float64)
        self._lowest = np.minimum(self._lowest, values_OB.min(axis=1))
        self._highest = np.maximum(self._highest, values_OB.max(axis=1))

    @property
    def table(self) -> HeadTable:
        """What has been counted."""
        outputs = [
            OutputFacts(
                name=name,
                images=(images := int(self._images[number])),
                mean_score=float(self._sums[number]) / images if images else None,
                lowest=float(self._lowest[number]),
                highest=float(self._highest[number]),
            )
            for name, number in self._numbers.items()
        ]
        used = [output for output in outputs if output.images]
        if self.head.result == "classes":
            used.sort(key=lambda output: -output.images)
        return {
            "name": self.head.name,
            "result": self.head.result,
            "used": used,
            "unused": [output.name for output in outputs if not output.images],
            "most_images": max((output.images for output in used), default=0),
            "images": self._rows,
            "linked": {},
        }
