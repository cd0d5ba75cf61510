"""Draws images/s against what an image costs the encoder, under the ceilings that were measured."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np

from gpu_facts import Facts, figure


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
