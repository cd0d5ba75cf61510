"""Draw a review queue from a run's scored images.

    doubtful    the images with the smallest margins, all of them: a stratum of their own, with weight 1
    random      uniformly from the others
    per label   uniformly from the others that have the label

Where some are drawn by label, each label is a stratum, and random draws count to the stratum of their label; its weight
is the images that it has over the images that are drawn from it. Else all others are one stratum. So the weights add up
to the images that the queue stands for, and within a stratum every image was as likely to be drawn as any other.

A row is drawn by a hash of its row_id and the seed: the rows with the smallest ones. So the parts are read once, memory
depends on the length of the queue, and the same seed draws the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipbatch.config.sampling import keys
from clipbatch.config.validation import at_least
from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.row_group import cutoffs
from clipbatch.tools.evaluate.scores import NO_LABEL, GroupScores, ScoreBatch, part_batches

DOUBTFUL, RANDOM, NONE = "(doubtful)", "(random)", "(no label)"
_ROWS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How many images to draw."""

    per_label: int = 0
    doubtful: int = 0
    random: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("per_label", "doubtful", "random"):
            at_least(name, getattr(self, name), 0, 10**6)
        at_least("seed", self.seed, 0)
        if not self.per_label + self.doubtful + self.random:
            raise InputError("say how many images to review: --per-label N, --doubtful N, --random N, or several")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """An image to look at."""

    row_id: int
    uri: str
    # Of the run; the first one if it has several.
    label: str | None
    score: float
    # The label with the second best score; None if the run does not tell.
    second: str | None
    second_score: float | None
    margin: float | None
    stratum: str
    # How many images of the run it stands for.
    weight: float


@dataclass(slots=True, kw_only=True)
class Kept:
    """The rows with the smallest keys of each stratum, as columns."""

    # Of a stratum.
    most: int
    stratum: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    key: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    row_id: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    label: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(
        self, stratum: NDArray[np.int64], key: NDArray[Any], row_id: NDArray[np.int64], label: NDArray[np.int64]
    ) -> None:
        """Rows, each with its stratum, its key, and the number of its label."""
        strata, all_keys = np.concatenate([self.stratum, stratum]), np.concatenate([self.key, key])
        row_ids, labels = np.concatenate([self.row_id, row_id]), np.concatenate([self.label, label])
        order = np.lexsort((row_ids, all_keys, strata))
        ordered = strata[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        order = order[rank < self.most]
        self.stratum, self.key, self.row_id, self.label = strata[order], all_keys[order], row_ids[order], labels[order]


def draw(run: RunDir, plan: Plan, number: int, draws: Draws) -> list[QueueRow]:
    """The rows of a queue, in the order of the run. number: of the label group.

    Raises: InputError where the run has no finished part, or a damaged one.
    """
    scores = GroupScores(run, plan, number)
    names = [*scores.group.names, NONE]
    margins = _Margins(scores)
    doubtful = Kept(most=draws.doubtful)
    by_label = Kept(most=draws.per_label + draws.random + draws.doubtful)
    uniform = Kept(most=draws.random + draws.doubtful)
    counts: NDArray[np.int64] = np.zeros(len(names), np.int64)
    for batch in scores.batches(all_scores=margins.needs_all):
        label_B = np.where(batch.label_B == NO_LABEL, len(names) - 1, batch.label_B)
        key_B, nothing_B = keys(batch.row_id_B, draws.seed), np.zeros(len(label_B), np.int64)
        counts += np.bincount(label_B, minlength=len(names))
        if draws.doubtful:
            doubtful.add(nothing_B, margins.of(batch), batch.row_id_B, label_B)
        by_label.add(label_B, key_B, batch.row_id_B, label_B)
        uniform.add(nothing_B, key_B, batch.row_id_B, label_B)
    if not counts.sum():
        raise InputError(f"{run.path} has no scored image yet, so there is nothing to review")
    strata = choose(draws, counts, doubtful, uniform, by_label)
    return _filled(run, plan, scores, strata, names)


def choose(
    draws: Draws, counts: NDArray[np.int64], doubtful: Kept, uniform: Kept, by_label: Kept
) -> dict[int, tuple[int, float]]:
    """The stratum and the weight of each row that is drawn, by row_id; stratum -1 is that of the doubtful ones, and -2
    that of all others where none are drawn by label.

    counts: images of each label. doubtful, uniform: the first rows of all. by_label: the first rows of each label.
    """
    chosen = {int(row): (-1, 1.0) for row in doubtful.row_id}
    others = uniform.row_id[~np.isin(uniform.row_id, doubtful.row_id)][: draws.random]
    left = counts - np.bincount(doubtful.label, minlength=len(counts))
    if not draws.per_label:
        return chosen | {int(row): (-2, float(left.sum()) / len(others)) for row in others}
    free = ~np.isin(by_label.row_id, doubtful.row_id)
    for label in np.unique(by_label.stratum).tolist():
        rows = by_label.row_id[free & (by_label.stratum == label)]
        drawn = int(np.isin(rows, others).sum()) + draws.per_label
        mine = rows[:drawn]
        chosen |= {int(row): (label, float(left[label]) / len(mine)) for row in mine}
    return chosen


class _Margins:
    """How doubtful each row is; the smallest first."""

    def __init__(self, scores: GroupScores) -> None:
        self._scores = scores
        self._cutoff_L = cutoffs(scores.group)
        # Whether the scores of all labels are needed.
        self.needs_all = scores.group.multiple or not scores.has_margin

    def of(self, batch: ScoreBatch) -> NDArray[np.float64]:
        """The best score minus the second best; where an image may have several labels, how near to its threshold the
        nearest score is."""
        scores_BL = batch.scores_BL
        if self._scores.group.multiple and scores_BL is not None:
            return np.asarray(np.abs(scores_BL - self._cutoff_L).min(axis=1), np.float64)
        if batch.margin_B is not None:
            return batch.margin_B.astype(np.float64)
        if scores_BL is None or scores_BL.shape[1] < 2:
            return batch.score_B.astype(np.float64)
        best_two = np.partition(scores_BL, -2, axis=1)[:, -2:]
        return np.asarray(best_two[:, 1] - best_two[:, 0], np.float64)


def _filled(
    run: RunDir, plan: Plan, scores: GroupScores, strata: dict[int, tuple[int, float]], names: list[str]
) -> list[QueueRow]:
    """What is shown of the chosen rows, which `strata` has by row_id."""
    special = {-1: DOUBTFUL, -2: RANDOM}
    wanted = pa.array(sorted(strata), pa.int64())
    rows = []
    shards = {row // plan.shard_size for row in strata}
    uris = _uris(run, plan, wanted)
    for batch in scores.batches(shards=shards):
        here = np.flatnonzero(np.asarray(pc.is_in(pa.array(batch.row_id_B), value_set=wanted)))
        for slot in here.tolist():
            row_id = int(batch.row_id_B[slot])
            stratum, weight = strata[row_id]
            label = int(batch.label_B[slot])
            second = _second(batch, slot)
            score = float(batch.score_B[slot])
            rows.append(
                QueueRow(
                    row_id=row_id,
                    uri=uris[row_id],
                    label=None if label == NO_LABEL else names[label],
                    score=score,
                    second=None if second is None else names[second[0]],
                    second_score=None if second is None else second[1],
                    margin=None if batch.margin_B is None else float(batch.margin_B[slot]),
                    stratum=special.get(stratum) or names[stratum],
                    weight=weight,
                )
            )
    return rows


def _uris(run: RunDir, plan: Plan, wanted: pa.Array) -> dict[int, str]:
    uris: dict[int, str] = {}
    for batch in part_batches(run, plan, ["row_id", "uri"], _ROWS):
        some = batch.filter(pc.is_in(batch.column("row_id"), value_set=wanted))
        uris |= dict(zip(some.column("row_id").to_pylist(), some.column("uri").to_pylist(), strict=True))
    return uris


def _second(batch: ScoreBatch, slot: int) -> tuple[int, float | None] | None:
    if batch.scores_BL is not None:
        if batch.scores_BL.shape[1] < 2:
            return None
        order = np.argsort(-batch.scores_BL[slot], kind="stable")
        return int(order[1]), float(batch.scores_BL[slot, order[1]])
    if batch.top_BK is not None and batch.top_BK.shape[1] > 1:
        margin = None if batch.margin_B is None else float(batch.score_B[slot] - batch.margin_B[slot])
        return int(batch.top_BK[slot, 1]), margin
    return None
