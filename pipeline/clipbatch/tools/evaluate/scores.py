"""The scores of a run, batch by batch: as its parts hold them, or computed from its saved embeddings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.config.label_set import LabelGroup, LabelSet
from clipbatch.errors import InputError
from clipbatch.rundir import features
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import ModelFacts
from clipbatch.rundir.schema import GroupColumns, group_columns
from clipbatch.storage.paths import parquet_source
from clipbatch.workers import signals

_SCORES_AT_ONCE = 2**24
_MAX_ROWS = 2**16
_MIN_ROWS = 1024
NO_LABEL = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBatch:
    """Rows of a run that have scores, of one label group."""

    row_id_B: NDArray[np.int64]
    # The number of the label; `NO_LABEL` for none.
    label_B: NDArray[np.int64]
    # Of the best label.
    score_B: NDArray[np.float32]
    # The best score minus the second best; None if the run does not tell.
    margin_B: NDArray[np.float32] | None
    # Of all labels; None if the run has kept the best ones alone, and no embeddings.
    scores_BL: NDArray[np.float32] | None
    # Numbers of the best labels, best first, if the run has kept these alone.
    top_BK: NDArray[np.int64] | None
    # For a group whose images may have several labels: the row in this batch and the label's number, for each label
    # that an image has.
    chosen: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    # Status of the rows in between that have no scores, by row_id.
    bad: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """How cosines become the scores of one label group; `stages.score` in numpy."""

    text_TD: NDArray[np.float32]
    kind: str
    logit_scale: float
    logit_bias: float | None
    is_tags: bool

    def __call__(self, image_BD: NDArray[Any]) -> NDArray[np.float32]:
        """`scores_BL` in float32."""
        cosine_BT = image_BD.astype(np.float32) @ self.text_TD.T
        if self.is_tags:
            yes, no = np.split(cosine_BT, 2, axis=1)
            return _sigmoid((yes - no) * np.float32(self.logit_scale))
        if self.kind == "cosine":
            return np.asarray(cosine_BT)
        logits_BL = cosine_BT * np.float32(self.logit_scale) + np.float32(self.logit_bias or 0.0)
        if self.kind == "sigmoid":
            return _sigmoid(logits_BL)
        logits_BL -= logits_BL.max(axis=1, keepdims=True)
        np.exp(logits_BL, out=logits_BL)
        logits_BL /= logits_BL.sum(axis=1, keepdims=True)
        return np.asarray(logits_BL)


def scorers(labels: LabelSet, text_TD: NDArray[np.float32], facts: ModelFacts, kind: str) -> list[Scorer]:
    """One for each group. facts: the model's. kind: softmax, sigmoid or cosine."""
    rows = [size * (2 if tags else 1) for size, tags in zip(labels.sizes, labels.are_tags, strict=True)]
    parts = np.split(text_TD, np.cumsum(rows)[:-1])
    scale, bias = facts["logit_scale"], facts["logit_bias"]
    return [
        Scorer(text_TD=part, kind=kind, logit_scale=scale, logit_bias=bias, is_tags=tags)
        for part, tags in zip(parts, labels.are_tags, strict=True)
    ]


class GroupScores:
    """The rows of one label group of a run; may be read several times."""

    def __init__(self, run: RunDir, plan: Plan, number: int) -> None:
        """number: of the group."""
        self._run, self._plan = run, plan
        settings = plan.run_settings()
        self.group: LabelGroup = plan.labels.groups[number]
        self.columns: GroupColumns = group_columns(plan.labels, settings.output)[number]
        facts = run.model_facts()
        self.kind: str = facts["score"] if facts else ""
        self._tops = settings.output.best is not None
        self._scorer: Scorer | None = None
        if self._tops and settings.output.embeddings and facts:
            frozen = features.load(run, plan)
            if frozen is not None:
                self._scorer = scorers(plan.labels, frozen[0], facts, self.kind)[number]
        self.has_margin = self.columns.margin is not None and len(self.group.names) > 1
        # Whether the scores of all labels are known.
        self.has_all = not self._tops or self._scorer is not None
        self.from_embeddings = self._scorer is not None
        self.kept = min(settings.output.best or len(self.group.names), len(self.group.names))

    def batches(self, *, all_scores: bool = True, shards: Collection[int] | None = None) -> Iterator[ScoreBatch]:
        """The rows of all finished parts, in order.

        all_scores: False to read the best label alone, and its score. shards: read these parts only.
        Raises: InputError naming a part that is damaged.
        """
        columns = ["row_id", "status", self.columns.label, self.columns.score]
        columns += self.columns.scores if all_scores else ()
        columns += [name for name in (self.columns.labels, self.columns.margin if self.has_margin else None) if name]
        columns += ["embedding"] if self._scorer and all_scores else []
        size = max(_MIN_ROWS, min(_MAX_ROWS, _SCORES_AT_ONCE // len(self.group.names)))
        for batch in part_batches(self._run, self._plan, columns, size, shards):
            ok = pc.equal(batch.column("status").cast(pa.string()), "ok")
            yield self._batch(batch.filter(ok), _bad(batch, ok), all_scores)

    def _batch(self, good: pa.RecordBatch, bad: dict[int, str], all_scores: bool) -> ScoreBatch:
        names = pa.array(self.group.names, pa.string())
        label = good.column(self.columns.label)
        numbers = np.asarray(pc.fill_null(pc.index_in(label.dictionary, value_set=names), NO_LABEL))
        codes = np.append(numbers, NO_LABEL)[np.asarray(pc.fill_null(label.indices, len(numbers)))]
        chosen = None
        if self.columns.labels:
            lists = good.column(self.columns.labels)
            rows = np.repeat(np.arange(len(lists)), np.asarray(pc.list_value_length(lists)))
            chosen = rows, np.asarray(pc.index_in(lists.flatten(), value_set=names), np.int64)
        scores_BL = top_BK = None
        if self._tops and len(good) and all_scores:
            entries = good.column(self.columns.scores[0]).flatten()
            top_BK = np.asarray(pc.index_in(entries.field("label"), value_set=names), np.int64)
            top_BK = top_BK.reshape(len(good), -1)
        elif not self._tops and all_scores:
            scores_BL = self._stored(good)
        if self._scorer is not None and all_scores:
            embeddings = good.column("embedding")
            values = embeddings.flatten().to_numpy(zero_copy_only=False)
            scores_BL = self._scorer(values.reshape(len(good), embeddings.type.list_size))
        return ScoreBatch(
            row_id_B=np.asarray(good.column("row_id")),
            label_B=codes.astype(np.int64),
            score_B=np.asarray(good.column(self.columns.score)),
            margin_B=None if not self.has_margin else np.asarray(good.column(self.columns.margin or "")),
            scores_BL=scores_BL,
            top_BK=top_BK,
            chosen=chosen,
            bad=bad,
        )

    def _stored(self, good: pa.RecordBatch) -> NDArray[np.float32]:
        names = self.columns.scores
        if pa.types.is_fixed_size_list(good.column(names[0]).type):
            flat = good.column(names[0]).flatten().to_numpy(zero_copy_only=False)
            return np.asarray(flat.reshape(len(good), len(self.group.names)), np.float32)
        return np.stack([np.asarray(good.column(name), np.float32) for name in names], axis=1)


def part_batches(
    run: RunDir, plan: Plan, columns: Sequence[str], rows: int, shards: Collection[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """These columns of all finished parts, in order, up to `rows` rows at a time.

    shards: only these parts. Raises: InputError naming a part that is damaged.
    """
    done = run.done(plan)
    for shard in sorted(done if shards is None else done.intersection(shards)):
        path = run.part(shard, plan.shards)
        try:
            with pq.ParquetFile(parquet_source(path)) as file:
                for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
                    signals.check()
                    yield batch
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair does it again") from error


def _bad(batch: pa.RecordBatch, ok: pa.BooleanArray) -> dict[int, str]:
    if ok.true_count == len(batch):
        return {}
    rows = batch.filter(pc.invert(ok))
    return dict(zip(rows.column("row_id").to_pylist(), rows.column("status").to_pylist(), strict=True))


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)), np.float32)
