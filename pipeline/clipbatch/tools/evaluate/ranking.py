"""Several label files on the saved embeddings of one run, ranked: which words name its images best.

Reads no image.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipbatch.config import LabelSettings
from clipbatch.config.label_set import LabelGroup, LabelSet
from clipbatch.config.labels import load
from clipbatch.config.nesting import JsonObject
from clipbatch.config.scoring import check_scoring
from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.row_group import cutoffs
from clipbatch.tools.evaluate.scores import Scorer, part_batches, scorers
from clipbatch.tools.evaluate.statistics import share
from clipbatch.tools.evaluate.truth import NO_TRUTH, Truth
from clipbatch.workers.child import Child, raise_failure

_ROWS = 2**14
_START_S = 600.0


@dataclass(slots=True, kw_only=True)
class _Candidate:
    """A label file under test."""

    file: str
    group: LabelGroup
    scorer: Scorer
    # The label of each value of the truth; -1 for one that is no label of this file.
    number_of: NDArray[np.int64]
    images: int = 0
    right: int = 0
    unknown: int = 0
    seconds: float = 0.0

    def add(self, image_BD: NDArray[np.float16], codes_B: NDArray[np.int32], truth: Truth) -> None:
        begun = time.perf_counter()
        scores_BL = self.scorer(image_BD)
        cutoff_L = cutoffs(self.group)
        if truth.lists is not None:
            chosen_BL = scores_BL >= cutoff_L
            known = [[self.number_of[value] for value in values] for values in truth.lists]
            truth_BL = np.zeros_like(chosen_BL)
            for row, code in enumerate(codes_B.tolist()):
                truth_BL[row, [number for number in known[code] if number >= 0]] = True
                self.unknown += any(number < 0 for number in known[code])
            self.images += len(codes_B)
            self.right += int((chosen_BL == truth_BL).all(axis=1).sum())
        else:
            best_B = scores_BL.argmax(axis=1)
            has_label = scores_BL[np.arange(len(best_B)), best_B] >= cutoff_L[best_B]
            truth_B = self.number_of[codes_B]
            self.unknown += int((truth_B < 0).sum())
            self.images += int((truth_B >= 0).sum())
            self.right += int((has_label & (best_B == truth_B)).sum())
        self.seconds += time.perf_counter() - begun


def rank(run: RunDir, plan: Plan, files: Sequence[str], truth: Truth, group: str | None) -> list[JsonObject]:
    """The files, best first, each with its share of right images and that share's 95% interval.

    An image is right if its label is its truth, or, where it may have several, if its labels are all of its truth and
    nothing else. group: of which label group, in files that have several.
    Raises: InputError where the run has no embeddings, or a file does not go with it.
    """
    if not plan.run_settings().output.embeddings:
        raise InputError(
            f"{run.path} has no embeddings to score label files with: label the images again with --embeddings"
        )
    facts = run.model_facts()
    if facts is None:
        raise InputError(f"{run.path} has no finished part yet: clipbatch run --out {run.path} first")
    sets = [load(LabelSettings(labels=file)) for file in files]
    settings = plan.run_settings()
    for labels in sets:
        check_scoring(labels, settings.output.score, facts["logit_bias"] is not None, settings.model.model)
    candidates = []
    for file, labels, text_TD in zip(files, sets, _features(run, sets), strict=True):
        number = group_number(labels, group, file)
        chosen = labels.groups[number]
        if chosen.multiple != (truth.lists is not None):
            raise InputError(
                f"{file}: an image may have {'several labels' if chosen.multiple else 'one label'} by this file, and "
                "not by the run's own labels: rank files of one kind"
            )
        numbers = {name: at for at, name in enumerate(chosen.names)}
        candidates.append(
            _Candidate(
                file=file,
                group=chosen,
                scorer=scorers(labels, text_TD, facts, facts["score"])[number],
                number_of=np.array([numbers.get(name, -1) for name in truth.names], np.int64),
            )
        )
    for batch in part_batches(run, plan, ["row_id", "status", "embedding"], _ROWS):
        codes_B = truth.codes[np.asarray(batch.column("row_id"))]
        wanted = np.asarray(pc.equal(batch.column("status").cast(pa.string()), "ok")) & (codes_B != NO_TRUTH)
        embeddings = batch.column("embedding").filter(pa.array(wanted))
        values = embeddings.flatten().to_numpy(zero_copy_only=False)
        image_BD = values.reshape(len(embeddings), embeddings.type.list_size)
        for candidate in candidates:
            candidate.add(image_BD, codes_B[wanted], truth)
    ranked = sorted(candidates, key=lambda c: -(c.right / c.images if c.images else 0.0))
    return [
        {
            "labels": candidate.file,
            "accuracy": share(candidate.right, candidate.images),
            "unknown_truth": candidate.unknown,
            "seconds": round(candidate.seconds, 3),
        }
        for candidate in ranked
    ]


def group_number(labels: LabelSet, name: str | None, place: str) -> int:
    """Which group `name` is; the only one for None. place: how messages name the labels. Raises: InputError."""
    names = [group.name for group in labels.groups]
    if not names:
        raise InputError(f"{place} has no labels: clipbatch rescore gives it some, if it has saved its embeddings")
    if name is None and len(names) == 1:
        return 0
    if name not in names:
        known = ", ".join(names) if names != [""] else "it has no groups"
        what = f"there is no label group {name!r}" if name else "there are several label groups"
        raise InputError(f"{place}: {what}: choose one with --group ({known})")
    return names.index(name)


def _features(run: RunDir, sets: Sequence[LabelSet]) -> list[NDArray[np.float32]]:
    """`text_TD` of each label set, by a process that may load the model."""
    with (
        tempfile.TemporaryDirectory(prefix="clipbatch-") as folder,
        Child("clipbatch.tools.evaluate.features_main", str(run.path), folder) as child,
    ):
        child.send([labels.prompts for labels in sets])
        try:
            raise_failure(child.receive(_START_S))
        except EOFError as error:
            log = "\n".join(child.log())
            raise InputError(f"the labels' prompts could not be encoded: the process ended\n{log}") from error
        return [np.load(Path(folder) / f"{number}.npy", allow_pickle=False) for number in range(len(sets))]
