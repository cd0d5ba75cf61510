"""The stages of a run without a run: batches of images -> tables. One of these serves many threads.

A full batch takes the very way of a run's batch, so its scores are the same to the bit. One that is not full is
trimmed: on a GPU its scores differ from those of a run within what the precision gives (docs/explanation/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

import pyarrow as pa

from clipbatch.config import Settings, auto
from clipbatch.config.labels import LabelSet
from clipbatch.rundir.row_group import RowGroup
from clipbatch.stages.encode import check_device, text_features, trimmed
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.loading import fit
from clipbatch.stages.pipeline import scorer, scoring
from clipbatch.stages.read import Backpressure
from clipbatch.types import EmbeddedBatch, ItemBatch, PixelBatch, ReadBatch


class Labeller:
    """A loaded model, with its label features."""

    def __init__(self, settings: Settings, labels: LabelSet) -> None:
        """settings: resolved. Raises: InputError where the model cannot be had."""
        device = auto.device_of(settings)
        check_device(device)
        assert settings.batch_size
        self.batch_size = settings.batch_size
        self.model = fit(settings, settings.batch_size, device)
        facts = self.model.model.facts()
        self.score_kind = scoring(settings, facts)
        text_LD = text_features(self.model.model, labels.prompts)
        embeddings = settings.output.embeddings
        self._score = scorer(text_LD, facts, self.score_kind, labels=labels, embeddings=embeddings, device=device)
        self._labels, self._output, self._embedding = labels, settings.output, text_LD.shape[1]

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
        rows = RowGroup(self._labels, self._output, capacity=len(batch.outcomes), embedding=self._embedding)
        rows.add(self._score(batch))
        table = rows.take()
        return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
