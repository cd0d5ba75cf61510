"""Counts over all rows of a run, batch by batch: memory depends on the number of labels, not on the number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipbatch.config.sampling import keys
from clipbatch.tools.evaluate.scores import NO_LABEL, ScoreBatch
from clipbatch.tools.evaluate.statistics import BINS, Stratum, bins
from clipbatch.tools.evaluate.truth import NO_TRUTH, Truth

_CALIBRATION_BINS = 15
# None that a user is likely to draw a queue with.
_HALVES_SEED = 2**31 - 1


class SparseCounts:
    """How often each whole number occurred, with weights; add to it batch by batch."""

    def __init__(self) -> None:
        self._values: NDArray[np.int64] = np.zeros(0, np.int64)
        self._weights: NDArray[np.float64] = np.zeros(0)

    def add(self, values: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> None:
        all_values = np.concatenate([self._values, values])
        new = np.ones(len(values)) if weights is None else weights
        self._values, inverse = np.unique(all_values, return_inverse=True)
        counted = np.bincount(inverse, np.concatenate([self._weights, new]), minlength=len(self._values))
        self._weights = np.asarray(counted, np.float64)

    def items(self) -> Iterator[tuple[int, float]]:
        """Each number that occurred, in rising order, with how often."""
        return zip(self._values.tolist(), self._weights.tolist(), strict=True)


class Tally:
    """What is counted of one label group."""

    def __init__(
        self, truth: Truth, labels: list[str], kind: str, *, several: bool, has_all: bool, in_halves: bool
    ) -> None:
        """several: whether an image may have several labels. has_all: whether the scores of all labels are known.
        in_halves: count scores in two halves of the images, so that thresholds can be chosen on one and tried on the
        other; a row is in the same half every time.
        """
        self._halves = 2 if in_halves else 1
        self._truth, self._kind, self._several, self._has_all = truth, kind, several, has_all
        self.size = size = len(labels)
        numbers = {name: number for number, name in enumerate(labels)}
        self._number_of = np.array([*(numbers.get(name, NO_LABEL) for name in truth.names), NO_LABEL], np.int64)
        self.images = self.right = self.right_top_5 = 0
        # Images for which the five best labels are known.
        self.in_top_5 = 0
        self.score_sum = 0.0
        self.without_truth = 0
        self.bad: Counter[str] = Counter()
        # Values of the truth that are no labels, with how many images have them.
        self.unknown: Counter[str] = Counter()
        # Of truth * (size + 1) + label, where no label is `size`.
        self.confusion = SparseCounts()
        self.support, self.predicted, self.found = (np.zeros(size) for _ in range(3))
        # Images whose labels are all of the truth and nothing else.
        self.exact = 0
        shape = (self._halves, size, BINS)
        self.all_scores = np.zeros(shape, np.uint32) if has_all else None
        # Of all labels, by label: how well a label's score tells its images from the others.
        self.positive_scores = np.zeros(shape, np.uint32) if has_all else None
        # Of the label with the best score, by that label; for images with one label each.
        self.best_scores, self.right_scores = (np.zeros(shape, np.uint32) for _ in range(2))
        # Images, right ones and summed scores, in bins of the best score.
        self.calibration = np.zeros((3, _CALIBRATION_BINS))
        # Of a review queue: whether each row is right, by row_id.
        self.answers: dict[int, bool] = {}

    def add(self, batch: ScoreBatch) -> None:
        codes_B = self._truth.codes[batch.row_id_B]
        self.without_truth += int((codes_B == NO_TRUTH).sum())
        for row, status in batch.bad.items():
            if self._truth.codes[row] != NO_TRUTH:
                self.bad[status] += 1
        if self._several:
            self._add_several(batch, np.flatnonzero(codes_B != NO_TRUTH), codes_B)
        else:
            truth_B = self._number_of[codes_B]
            strange = (truth_B == NO_LABEL) & (codes_B != NO_TRUTH)
            for code, count in zip(*np.unique(codes_B[strange], return_counts=True), strict=True):
                self.unknown[self._truth.names[code]] += int(count)
            if self._truth.weights is not None:  # what a person calls something else has a wrong label
                self.answers |= dict.fromkeys(batch.row_id_B[strange].tolist(), False)
            self._add_single(batch, np.flatnonzero(truth_B != NO_LABEL), truth_B)

    def _weights(self, row_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        weights = self._truth.weights
        if weights is None:
            return np.ones(len(row_ids))
        return np.array([weights[row][1] if row in weights else 0.0 for row in row_ids.tolist()])

    def _add_single(self, batch: ScoreBatch, rows: NDArray[np.int64], truth_B: NDArray[np.int64]) -> None:
        """rows: those of the batch whose truth is a label."""
        if not len(rows):
            return
        truth, label, score = truth_B[rows], batch.label_B[rows], batch.score_B[rows]
        row_ids, right = batch.row_id_B[rows], batch.label_B[rows] == truth_B[rows]
        weights = self._weights(row_ids)
        if self._truth.weights is not None:
            self.answers |= dict(zip(row_ids.tolist(), right.tolist(), strict=True))
        self.images += len(rows)
        self.right += int(right.sum())
        self.score_sum += float(score.sum(dtype=np.float64))
        self.confusion.add(truth * (self.size + 1) + np.where(label == NO_LABEL, self.size, label), weights)
        self.support += np.bincount(truth, weights, minlength=self.size)
        has_label = label != NO_LABEL
        self.predicted += np.bincount(label[has_label], weights[has_label], minlength=self.size)
        self.found += np.bincount(truth[right], weights[right], minlength=self.size)
        best = label
        if batch.scores_BL is not None:
            scores = batch.scores_BL[rows]
            best = scores.argmax(axis=1)
            self._count_scores(scores, self._half_of(row_ids), np.arange(len(rows)), truth)
            own = scores[np.arange(len(rows)), truth][:, None]
            ahead = (scores > own).sum(axis=1)
            ahead += ((scores == own) & (np.arange(self.size) < truth[:, None])).sum(axis=1)
            self.in_top_5 += len(rows)
            self.right_top_5 += int((ahead < 5).sum())
        elif batch.top_BK is not None:
            best = batch.top_BK[rows, 0]
            if batch.top_BK.shape[1] >= min(5, self.size):
                self.in_top_5 += len(rows)
                self.right_top_5 += int((batch.top_BK[rows, :5] == truth[:, None]).any(axis=1).sum())
        self._count_best(score, best, best == truth, self._half_of(row_ids))

    def _count_best(
        self, score: NDArray[np.float32], best: NDArray[np.int64], right: NDArray[np.bool_], half: NDArray[np.int64]
    ) -> None:
        """best: the label with the best score, whatever its threshold."""
        known = best != NO_LABEL
        at = (half * self.size + best) * BINS + bins(score, self._kind)
        np.add.at(self.best_scores.reshape(-1), at[known], 1)
        np.add.at(self.right_scores.reshape(-1), at[known & right], 1)
        if self._kind != "cosine":
            place = (score * _CALIBRATION_BINS).astype(np.int64).clip(0, _CALIBRATION_BINS - 1)
            for number, weights in enumerate((None, right.astype(float), score.astype(float))):
                self.calibration[number] += np.bincount(place, weights, minlength=_CALIBRATION_BINS)

    def _count_scores(
        self,
        scores_BL: NDArray[np.float32],
        half_B: NDArray[np.int64],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> None:
        """rows, labels: which of the scores are those of a label that the image really has."""
        assert self.all_scores is not None
        assert self.positive_scores is not None
        bin_BL = bins(scores_BL, self._kind)
        bin_BL += (np.arange(self.size, dtype=np.int32) * BINS)[None, :]
        for half in range(self._halves):
            here = half_B == half
            flat = (bin_BL if here.all() else bin_BL[here]).ravel()
            counted = np.bincount(flat, minlength=self.size * BINS)
            self.all_scores[half] += counted.reshape(self.size, BINS).astype(np.uint32)
            own = here[rows]
            np.add.at(self.positive_scores[half].reshape(-1), bin_BL[rows[own], labels[own]], 1)

    def _add_several(self, batch: ScoreBatch, rows: NDArray[np.int64], codes_B: NDArray[np.int32]) -> None:
        """rows: those of the batch that have a truth, an empty one included."""
        if not len(rows):
            return
        assert self._truth.lists is not None
        assert batch.chosen is not None
        place_B = np.full(len(codes_B), -1)
        place_B[rows] = np.arange(len(rows))
        truth_BL = np.zeros((len(rows), self.size), bool)
        for place, code in enumerate(codes_B[rows].tolist()):
            for value in self._truth.lists[code]:
                number = self._number_of[value]
                if number == NO_LABEL:
                    self.unknown[self._truth.names[value]] += 1
                else:
                    truth_BL[place, number] = True
        label_BL = np.zeros_like(truth_BL)
        chosen_rows, chosen_labels = batch.chosen
        inside = place_B[chosen_rows] >= 0
        label_BL[place_B[chosen_rows[inside]], chosen_labels[inside]] = True
        right_B = (truth_BL == label_BL).all(axis=1)
        row_ids = batch.row_id_B[rows]
        weights = self._weights(row_ids)
        if self._truth.weights is not None:
            self.answers |= dict(zip(row_ids.tolist(), right_B.tolist(), strict=True))
        self.images += len(rows)
        self.exact += int(right_B.sum())
        self.support += weights @ truth_BL
        self.predicted += weights @ label_BL
        self.found += weights @ (truth_BL & label_BL)
        if batch.scores_BL is not None:
            at, labels = np.nonzero(truth_BL)
            self._count_scores(batch.scores_BL[rows], self._half_of(row_ids), at, labels)

    def _half_of(self, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return halves(row_ids) if self._halves == 2 else np.zeros(len(row_ids), np.int64)

    def strata(self) -> tuple[list[Stratum], list[str], int]:
        """Of a review queue: its strata with their answers, the names of those without any, and how many rows of it
        have no answer."""
        assert self._truth.weights is not None
        sizes: dict[str, float] = {}
        drawn: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for row, (stratum, weight) in self._truth.weights.items():
            sizes[stratum] = sizes.get(stratum, 0.0) + weight
            if row in self.answers:
                drawn[stratum] += 1
                right[stratum] += self.answers[row]
        answered = [name for name in sizes if drawn[name]]
        strata = [Stratum(size=sizes[name], drawn=drawn[name], right=right[name]) for name in answered]
        unanswered = len(self._truth.weights) - len(self.answers)
        return strata, [name for name in sizes if not drawn[name]], unanswered


def halves(row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Half 0 or 1 of each row, at random, since neighbours in a listing are often of one kind."""
    return np.asarray(keys(row_ids, _HALVES_SEED) >= 0.5, np.int64)
