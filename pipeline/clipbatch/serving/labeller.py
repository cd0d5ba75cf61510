"""The stages of a run without a run: batches of images -> tables. One of these serves many threads.

A full batch takes the very way of a run's batch, so its scores are the same to the bit. One that is not full is
trimmed: on a GPU its scores differ from those of a run within what the precision gives (docs/explanation/accuracy.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipbatch.config import Settings, auto
from clipbatch.config.heads import HeadFile
from clipbatch.config.label_set import LabelSet
from clipbatch.config.scoring import check_scoring
from clipbatch.rundir.row_group import RowGroup
from clipbatch.serving.decoding import DecodeProcess
from clipbatch.stages.cuda import check_device
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import label_features, trimmed
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.heads import check_model
from clipbatch.stages.loading import fit
from clipbatch.stages.pipeline import scorer, scoring
from clipbatch.stages.read import Backpressure
from clipbatch.types import EmbeddedBatch, ItemBatch, PixelBatch, ReadBatch


class Labeller:
    """A loaded model, with its label features."""

    def __init__(
        self,
        settings: Settings,
        labels: LabelSet,
        text_LD: NDArray[np.float32] | None = None,
        *,
        heads: Sequence[HeadFile] = (),
        decode_apart: bool = False,
    ) -> None:
        """settings: resolved. text_LD: features of `labels` by this model; None to compute them.

        decode_apart: on a CPU, decode in a process that may die.
        Raises: InputError if the model cannot be loaded.
        """
        device = auto.device_of(settings)
        check_device(device)
        assert settings.model.batch_size
        self.batch_size, self.max_pixels = settings.model.batch_size, settings.decode.max_pixels
        self.model = fit(settings, settings.model.batch_size, device)
        facts = self.model.model.facts()
        check_scoring(labels, settings.output.score, facts["logit_bias"] is not None, settings.model.model)
        if decode_apart and device == "cpu":
            apart = DecodeProcess(
                settings.decode,
                Target.from_facts(facts),
                batch_size=settings.model.batch_size,
                threads=self.model.decode.threads,
            )
            self.model = dataclasses.replace(self.model, decode=apart)
        self.score_kind = scoring(settings, facts)
        if text_LD is None:
            text_LD = label_features(self.model.model, labels)
        embeddings = settings.output.embeddings
        self._heads, anyway = [file.head for file in heads], bool(settings.labels.head_anyway)
        check_model(self._heads, settings.model, facts, text_LD.shape[1], anyway=anyway)
        self._score = scorer(
            text_LD, facts, self.score_kind, labels=labels, embeddings=embeddings, device=device, heads=heads
        )
        self._labels, self._output, self._embedding = labels, settings.output, text_LD.shape[1]

    def close(self) -> None:
        """End the threads and processes; to be called when nothing is being labelled."""
        self.model.read.close()
        self.model.decode.close()

    def read(self, batch: ItemBatch) -> ReadBatch:
        """The images' bytes, or why there are none."""
        return self.model.read(batch)

    def label(self, batch: ReadBatch) -> pa.Table:
        """A batch of up to `batch_size` images, by the thread that calls."""
        return self._table(self._encode(self.model.decode(batch)))

    def flow(self, batches: Iterable[ItemBatch]) -> Generator[pa.Table, None, None]:
        """The tables of all `batches`, in order: read, decoded and encoded at the same time, a bounded number ahead."""
        gate = Backpressure()
        stages = [*self.model.stages(gate, encode=self._encode), Stage(name="score", work=self._table)]
        try:
            yield from Flow(gate.admit(batches), stages)
        finally:
            gate.close()

    def _encode(self, batch: PixelBatch) -> EmbeddedBatch:
        return self.model.encode(trimmed(batch))

    def _table(self, batch: EmbeddedBatch) -> pa.Table:
        capacity = len(batch.outcomes)
        rows = RowGroup(self._labels, self._output, capacity=capacity, embedding=self._embedding, heads=self._heads)
        rows.add(self._score(batch))
        table = rows.take()
        return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
