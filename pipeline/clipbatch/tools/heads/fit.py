"""Trains a logistic probe on a run's saved embeddings, with scikit-learn, and tries it on other rows of the run.

The rows with a truth are divided at random, class by class. The regularisation is that of `_CS` which gives the lowest
log loss on a part of the training rows. Reads no image.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.tools.evaluate import truth as truths
from clipbatch.tools.evaluate.statistics import share
from clipbatch.tools.heads import write

# Weights (classes x embedding) and bias.
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]
# Inverse strength of the regularisation, as scikit-learn's C.
_CS = (0.1, 1.0, 10.0, 100.0, 1000.0)
_MAX_STEPS = 2000
# Of the training rows, for choosing among `_CS`.
_VALIDATION = 0.2
# Images that each class needs.
_MIN_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How a probe is to be fitted."""

    # A column of the run's input, or a file.
    truth: str
    # Share of the rows on which the probe is tried and not fitted.
    held_out: float = 0.2
    # scikit-learn's C; None: chosen.
    c: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"--held-out {self.held_out} is out of range: use a share such as 0.2")
        if self.c is not None and not self.c > 0:
            raise InputError(f"--c {self.c} is out of range: use a number above 0")


def fit(path: str, out: Path, request: Request) -> JsonObject:
    """Fit a head to the embeddings of the run in `path`, and write it to `out`. Returns how good it is.

    Raises: InputError if scikit-learn is missing, the run has no embeddings, or the truth does not fit.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError(f"fit-head needs {error.name}: pip install 'clipbatch[fit]'") from error
    write.check_out(out)
    run = RunDir(path)
    plan = run.plan()
    if not plan.settings["embeddings"]:
        raise InputError(f"{run.path} has no embeddings to fit a head to: label the images again with --embeddings")
    truth = truths.load(run, plan, request.truth, several=False)
    model = write.model_of_run(run)
    image_BD, code_B = _embeddings(run, plan, truth.codes)
    names, code_B = _classes(truth.names, code_B, request.truth)
    rng = np.random.default_rng(request.seed)
    train, held_out = divided(code_B, request.held_out, rng)
    c = request.c or _chosen_c(image_BD[train], code_B[train], rng)
    layer, converged = _probe(image_BD[train], code_B[train], c)
    best_B = _outputs(layer, image_BD[held_out]).argmax(axis=1)
    right = best_B == code_B[held_out]
    result: JsonObject = {
        "classes": names,
        "truth": truth.source,
        "fitted_on": len(train),
        "held_out": len(held_out),
        "accuracy": share(int(right.sum()), len(right)),
        "most_frequent": float(np.bincount(code_B[held_out]).max() / len(held_out)),
        "recall": {name: share(*_counts(right, code_B[held_out] == at)) for at, name in enumerate(names)},
        "c": c,
        "converged": converged,
    }
    fields = {"result": "classes", "activation": "none", "outputs": names}
    head = write.write(out, [layer], model, unit_length=True, **fields).head
    return result | {"head": str(out), "sha256": head.sha256}


def _embeddings(run: RunDir, plan: Plan, codes: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The embeddings of the rows that are ok and have a truth, and the truth's numbers."""
    images_BD, codes_B = [], []
    for table in truths.run_rows(run, plan, ["row_id", "embedding"]):
        table = table.filter(pc.is_valid(table["embedding"]))
        code_B = codes[table["row_id"].to_numpy()]
        values = table["embedding"].combine_chunks()
        image_BD = np.asarray(values.flatten()).reshape(len(table), values.type.list_size)
        images_BD.append(image_BD[code_B != truths.NO_TRUTH])
        codes_B.append(code_B[code_B != truths.NO_TRUTH])
    return np.concatenate(images_BD).astype(np.float32), np.concatenate(codes_B)


def _classes(names: list[str], code_B: NDArray[np.int32], spec: str) -> tuple[list[str], NDArray[np.int32]]:
    """The classes in alphabetical order, and each row's number among them.

    Raises: InputError if there are fewer than two classes, or one has fewer than `_MIN_ROWS` rows.
    """
    counts = np.bincount(code_B, minlength=len(names))
    order = sorted((number for number in range(len(names)) if counts[number]), key=names.__getitem__)
    if len(order) < 2:
        raise InputError(f"--truth {spec}: the images with a truth are all of one class: a probe needs two or more")
    for number in order:
        if counts[number] < _MIN_ROWS:
            raise InputError(
                f"--truth {spec}: {names[number]!r} has {counts[number]} image(s), and a class needs {_MIN_ROWS} or "
                "more: add some, or empty their truth"
            )
    places = np.zeros(len(names), np.int32)
    places[order] = np.arange(len(order))
    return [names[number] for number in order], places[code_B]


def divided(
    code_B: NDArray[np.int32], held_out: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of two parts of the rows, drawn at random, class by class.

    Both parts have a row of each class that has two rows. The only row of a class is in the first part.
    """
    parts: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for code in np.unique(code_B):
        rows = rng.permutation(np.flatnonzero(code_B == code))
        count = min(max(1, round(held_out * len(rows))), len(rows) - 1)
        parts[0].append(rows[count:])
        parts[1].append(rows[:count])
    return np.sort(np.concatenate(parts[0])), np.sort(np.concatenate(parts[1]))


def _chosen_c(image_BD: NDArray[np.float32], code_B: NDArray[np.int32], rng: np.random.Generator) -> float:
    train, tried = divided(code_B, _VALIDATION, rng)
    if not len(tried):
        return 1.0

    def loss(c: float) -> float:
        layer, _ = _probe(image_BD[train], code_B[train], c)
        outputs_BO = _outputs(layer, image_BD[tried]).astype(np.float64)
        outputs_BO -= outputs_BO.max(axis=1, keepdims=True)
        logs_BO = outputs_BO - np.log(np.exp(outputs_BO).sum(axis=1, keepdims=True))
        return float(-logs_BO[np.arange(len(tried)), code_B[tried]].mean())

    return min(_CS, key=loss)


def _probe(image_BD: NDArray[np.float32], code_B: NDArray[np.int32], c: float) -> tuple[Layer, bool]:
    """Weights and bias of a logistic regression, and whether it has converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=c, max_iter=_MAX_STEPS).fit(image_BD, code_B)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes, the softmax with 0 is the sigmoid
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    layer = (weight.astype(np.float32), bias.astype(np.float32))
    return layer, not any(issubclass(each.category, ConvergenceWarning) for each in caught)


def _outputs(layer: Layer, image_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    weight, bias = layer
    return np.asarray(image_BD @ weight.T + bias)


def _counts(right: NDArray[np.bool_], of_class: NDArray[np.bool_]) -> tuple[int, int]:
    return int((right & of_class).sum()), int(of_class.sum())


def text(result: JsonObject) -> str:
    """The result in a few lines, for a terminal."""
    entry = result["accuracy"]
    lines = [
        f"fitted on {result['fitted_on']} images with {result['truth']}, C = {result['c']:g}",
        f"accuracy on {result['held_out']} others: {100 * entry['value']:.2f}% (95% interval {100 * entry['low']:.2f} "
        f"to {100 * entry['high']:.2f}%); always the most frequent class: {100 * result['most_frequent']:.2f}%",
    ]
    if not result["converged"]:
        lines.append(f"warning: it has not converged within {_MAX_STEPS} steps: try a smaller --c")
    return "\n".join([*lines, f"written to {result['head']}: clipbatch run ... --head NAME={result['head']}"])
