"""The facts of `gpu_check.py` as tables, with what follows from them beside what is wanted. What is missing is "not
measured": no figure is made up of others that are not there."""

from __future__ import annotations

import math
from typing import Any

from clipbatch.config import models as catalog
from harness import table

Facts = dict[str, dict[str, Any]]
"""Section -> fact -> figure or words; `error` where a section did not come to its end."""

EXPECTED = (
    "end to end at least 0.95 of the slowest of reading, decoding and encoding; encoding at least 40% of the matrix "
    "product's rate for ViT-B-32 and 55% for ViT-L-14; decoding at least 1.5 times the best of DALI's defaults and "
    "torchvision; 10 times open_clip with a DataLoader on ViT-B-32, 25 times NeMo Curator's published 112 images/s on "
    "ViT-L-14; cosine at least 0.999 in the mean and 0.99 at worst, 99% the same top label; no image and no process "
    "lost with the pre-check on. On a CPU none of this is meant: reading, decoding and encoding share the cores."
)
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


def tables(facts: Facts, models: tuple[str, ...]) -> str:
    """Everything, in Markdown."""
    parts = [_models(facts, models), _verdicts(facts, models), _sections(facts)]
    errors = [[name, str(found["error"])] for name, found in facts.items() if "error" in found]
    if errors:
        parts.append(table(("did not come to its end", "why"), errors))
    return "\n\n".join(parts)


def _models(facts: Facts, models: tuple[str, ...]) -> str:
    names = ("read", "decode", "encode", "run")
    rows = []
    for model in models:
        rates = [figure(facts, model, f"{name} images/s") for name in names]
        rows.append([model, *map(text, rates), text(mfu(facts, model), 3), text(of_ceiling(rates), 3)])
    header = ("images/s", *names, "encode / matmul", "run / slowest part")
    return table(header, rows)


def mfu(facts: Facts, model: str) -> float:
    """The encoder's share of the rate that a large matrix product reaches."""
    encode, matmul = figure(facts, model, "encode images/s"), figure(facts, "ceilings", "matmul TFLOP/s")
    return encode * catalog.gflop(model) / 1000 / matmul


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
    others = [figure(facts, "decoders", f"{name} images/s") for name in ("DALI's defaults", "torchvision")]
    best = math.nan if any(map(math.isnan, others)) else max(others)
    ours = figure(facts, "decoders", "ours images/s")
    rows.append(("decoding / best of DALI's defaults and torchvision", ours / best, 1.5))
    for name in facts:
        if name.startswith("peer ") and name.endswith(f", {first}"):
            ratio = figure(facts, first, "run images/s") / figure(facts, name, "images/s")
            rows.append((f"{first}: run / {name}", ratio, 10 if "peer open_clip" in name else 1))
        elif name.startswith("peer "):
            ratio = figure(facts, last, "run images/s") / figure(facts, name, "images/s")
            rows.append((f"{last}: run / {name}", ratio, 1))
    if last == "ViT-L-14":
        rows.append((f"{last}: run / NeMo Curator's floor", figure(facts, last, "run images/s") / CURATOR_FLOOR, 25))
    for model in dict.fromkeys((catalog.DEMO, first)):
        for what, wanted in (("cosine, mean", 0.999), ("cosine, worst", 0.99), ("top-1 agreement", 0.99)):
            rows.append((f"{model}: {what}", figure(facts, "parity", f"{model} {what}"), wanted))
    shown = [[name, text(value, 4), f"{wanted:g}", _verdict(value, wanted)] for name, value, wanted in rows]
    return table(("", "measured", "wanted, at least", ""), shown)


def _verdict(value: float, wanted: float) -> str:
    return "" if math.isnan(value) else "reached" if value >= wanted else "MISSED"


def _sections(facts: Facts) -> str:
    rows = []
    for name, found in facts.items():
        named = {what: value for what, value in found.items() if what != "error"}
        for what, value in named.items():
            rows.append([f"{name}: {what}", text(value, 1) if isinstance(value, int | float) else str(value)])
        if not named:
            rows.append([name, NOT])
    return table(("everything", ""), rows)
