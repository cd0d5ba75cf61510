"""What follows from the facts of `gpu_check.py`: tables, verdicts against what is wanted, and a roofline.

What is missing is "not measured", and no figure is made of others that are missing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import harness
from clipbatch.config import models as catalog

Facts = dict[str, dict[str, Any]]
"""Section -> fact -> figure or words; `error` where a section did not come to its end."""

NOT = "not measured"
CURATOR_FLOOR = 112
"""Images/s a GPU that NeMo Curator publishes for ViT-L-14."""
_MFU = {"ViT-B-32": 0.40, "ViT-L-14": 0.55}


def figure(facts: Facts, section: str, name: str) -> float:
    """A fact that is a number; nan where it is missing."""
    value = facts.get(section, {}).get(name, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def text(value: float, digits: int = 0) -> str:
    """`value`, or that it is not measured."""
    return NOT if math.isnan(value) else f"{value:,.{digits}f}"


def tables(facts: Facts, models: tuple[str, ...], seconds: dict[str, float]) -> str:
    """Everything, in Markdown. seconds: that each section took."""
    parts = [_models(facts, models), _verdicts(facts, models), _sections(facts)]
    parts.append(harness.table(("section", "seconds"), [[name, f"{took:.0f}"] for name, took in seconds.items()]))
    errors = [[name, str(found["error"])] for name, found in facts.items() if "error" in found]
    if errors:
        parts.append(harness.table(("did not come to its end", "why"), errors))
    return "\n\n".join(parts)


def _models(facts: Facts, models: tuple[str, ...]) -> str:
    names = ("read", "decode", "encode", "run")
    rows = []
    for model in models:
        rates = [figure(facts, model, f"{name} images/s") for name in names]
        rows.append([model, *map(text, rates), text(mfu(facts, model), 3), text(of_ceiling(rates), 3)])
    header = ("images/s", *names, "encode / matmul", "run / slowest part")
    return harness.table(header, rows)


def mfu(facts: Facts, model: str) -> float:
    """The encoder's share of the rate that a large matrix product reaches."""
    alone, within = figure(facts, "encoding alone", f"{model} images/s"), figure(facts, model, "encode images/s")
    encode = within if math.isnan(alone) else alone
    return encode * catalog.gflop(model) / 1000 / figure(facts, "ceilings", "matmul TFLOP/s")


def of_ceiling(rates: list[float]) -> float:
    """The run's share of its slowest part."""
    *parts, run = rates
    return run / min(parts) if not any(map(math.isnan, rates)) else math.nan


def _verdicts(facts: Facts, models: tuple[str, ...]) -> str:
    rows: list[tuple[str, float, float]] = []
    first, last = models[0], models[-1]
    for model in models:
        rates = [figure(facts, model, f"{name} images/s") for name in ("read", "decode", "encode", "run")]
        rows.append((f"{model}: run / slowest part", of_ceiling(rates), 0.95))
        if model in _MFU:
            rows.append((f"{model}: encode / matmul", mfu(facts, model), _MFU[model]))
    others = [figure(facts, "decoding alone", f"{name} images/s") for name in ("DALI's defaults", "torchvision")]
    best = math.nan if any(map(math.isnan, others)) else max(others)
    ours = figure(facts, "decoding alone", "ours images/s")
    rows.append(("decoding / best of DALI's defaults and torchvision", ours / best, 1.5))
    for name in (name for name in facts if name.startswith("peer ")):
        model = name.rpartition(", ")[2]
        ratio = figure(facts, model, "run images/s") / figure(facts, name, "images/s")
        rows.append((f"{model}: run / {name}", ratio, 10 if "peer open_clip" in name else 1))
    if last == "ViT-L-14":
        rows.append((f"{last}: run / NeMo Curator's floor", figure(facts, last, "run images/s") / CURATOR_FLOOR, 25))
    for model in dict.fromkeys((catalog.DEMO, first)):
        for what, wanted in (("cosine, mean", 0.999), ("cosine, worst", 0.99), ("top-1 agreement", 0.99)):
            rows.append((f"{model}: {what}", figure(facts, "parity", f"{model} {what}"), wanted))
    verdicts = ["" if math.isnan(value) else "reached" if value >= wanted else "MISSED" for _, value, wanted in rows]
    shown = [
        [name, text(value, 4), f"{wanted:g}", verdict]
        for (name, value, wanted), verdict in zip(rows, verdicts, strict=True)
    ]
    return harness.table(("", "measured", "wanted, at least", ""), shown)


def _sections(facts: Facts) -> str:
    rows = []
    for name, found in facts.items():
        named = {what: value for what, value in found.items() if what != "error"}
        for what, value in named.items():
            rows.append([f"{name}: {what}", text(value, 1) if isinstance(value, int | float) else str(value)])
        if not named:
            rows.append([name, NOT])
    return harness.table(("everything", ""), rows)


def draw(facts: Facts, gflop: dict[str, float], path: Path) -> None:
    """Write a PNG: a line for the matrix product's rate, one for reading and one for decoding, points for each model.

    gflop: cost of an image, by model. What was not measured is left out.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    costs = np.geomspace(min(gflop.values()) / 3, max(gflop.values()) * 3, 50)
    matmul = figure(facts, "ceilings", "matmul TFLOP/s")
    if not math.isnan(matmul):
        axes.plot(costs, matmul * 1000 / costs, color="black", label="matrix product")
    for name, style in (("read", ":"), ("decode", "--")):
        rates = [figure(facts, model, f"{name} images/s") for model in gflop]
        known = [rate for rate in rates if not math.isnan(rate)]
        if known:
            axes.axhline(float(np.median(known)), color="gray", linestyle=style, label=f"{name} alone")
    for name, mark in (("encode", "o"), ("run", "s")):
        points = [(cost, figure(facts, model, f"{name} images/s")) for model, cost in gflop.items()]
        shown = [(cost, rate) for cost, rate in points if not math.isnan(rate)]
        if shown:
            axes.scatter(*zip(*shown, strict=True), marker=mark, label={"run": "end to end"}.get(name, "encode alone"))
    for model, cost in gflop.items():
        axes.annotate(model, (cost, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="GFLOP an image", ylabel="images/s", title="How far from the ceilings")
    axes.legend()
    figure_.savefig(path, dpi=110)
    pyplot.close(figure_)
