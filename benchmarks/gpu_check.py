"""Is clipbatch at the GPU's limit, and how far ahead of others? One command for a machine with a GPU, offline.

    make gpu-check            (python benchmarks/gpu_check.py --report benchmarks/results/DATE-gpu-check.md)
    python benchmarks/gpu_check.py --device cpu --small       the same code at small scale, to see that it runs

From photographs and models with random weights: the crash probe (one unparseable image in a batch, with and without
the pre-check), ceilings, end to end per model, decoders, the share of the JPEG engines, parity, peers, and the tests of
tests/gpu. gpu_sections.py measures. Each section runs in a process of its own, with a time limit, and all of them
within ten minutes; what is missing at the end is "not measured", and no figure is made of others that are missing. A
process that dies is a result. A report comes with a roofline (PNG) and, while it runs, with the facts so far (JSON).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import gpu_sections as sections
import harness
from clipbatch.config import models as catalog
from fixtures import photographs
from gpu_tensorrt import tensorrt
from harness import Benchmark
from peers import PEERS

ALL_S = 540.0
"""Leaves a minute of the ten for imports and the roofline."""
TESTS = Path(__file__).resolve().parents[1] / "tests" / "gpu"
DONE = "done"
CHECKED = "with the pre-check"
Facts = dict[str, dict[str, Any]]
"""Section -> fact -> figure or words; `error` where a section did not come to its end."""

NOT = "not measured"
CURATOR_FLOOR = 112
"""Images/s a GPU that NeMo Curator publishes for ViT-L-14."""
_MFU = {"ViT-B-32": 0.40, "ViT-L-14": 0.55}


# sections


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Something to measure."""

    name: str
    budget_s: float
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()


def plan(scale: sections.Scale) -> list[Section]:
    """All sections, what matters most first."""
    found = [
        Section(name=f"crash probe {batch}, {how}", budget_s=30, work=sections.crash, arguments=(batch, how == CHECKED))
        for batch in scale.crash_batches
        for how in (CHECKED, "without")
    ]
    found.append(Section(name="ceilings", budget_s=25, work=sections.ceilings))
    budgets = dict(zip(sections.FULL, (50, 55, 70), strict=True))
    for model in scale.models:
        found.append(Section(name=model, budget_s=budgets.get(model, 50), work=sections.model, arguments=(model,)))
    found.append(Section(name="decoders", budget_s=40, work=sections.decoders))
    found.append(Section(name="hw_decoder_load", budget_s=40, work=sections.sweep))
    found.append(Section(name="parity", budget_s=45, work=sections.parity))
    for peer in PEERS:
        which = scale.models[-1] if "NeMo" in peer else scale.models[0]
        part = 16 if "NeMo" in peer or "Hugging" in peer else 4 if "retrieval" in peer else 2  # the slow ones do fewer
        arguments = (peer, which, max(scale.batch, scale.images // part))
        found.append(Section(name=f"peer {peer}, {which}", budget_s=28, work=sections.peer, arguments=arguments))
    what = scale.models[0]
    found.append(Section(name=f"TensorRT, {what}", budget_s=150, work=tensorrt, arguments=(what,)))
    return found


def _child(pipe: Connection, section: Section, scale: sections.Scale) -> None:
    os.setpgid(0, 0)  # what it starts ends with it
    multiprocessing.set_start_method("fork", force=True)  # of a DataLoader's workers, as on any Linux
    try:
        section.work(scale, lambda name, value: pipe.send((name, value)), *section.arguments)
    except Exception as error:  # which is a result, too
        pipe.send(("error", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]))
    pipe.send((DONE, None))


def measure(section: Section, scale: sections.Scale, until: float, context: Any) -> dict[str, Any]:
    """The facts of a section, as far as it got; `error` says why not further."""
    facts: dict[str, Any] = {}
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, section, scale))
    budget_s = section.budget_s * scale.patience
    if time.monotonic() > until - 1:
        return {"error": "no time was left"}
    process.start()
    theirs.close()
    limit = min(time.monotonic() + budget_s, until)
    try:
        while ours.poll(max(0.0, limit - time.monotonic())):
            name, value = ours.recv()
            if name == DONE:
                return facts
            facts[name] = value
        facts["error"] = f"ended after {budget_s:.0f} s"
    except EOFError:
        process.join()
        code = process.exitcode or 0
        facts["error"] = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # where it has no group of its own yet
        process.join()
    return facts


def run_tests(device: str, limit_s: float) -> dict[str, Any]:
    """tests/gpu, where there is a GPU."""
    if device == "cpu" or not TESTS.is_dir():
        return {}
    command = [sys.executable, "-m", "pytest", str(TESTS), "-v", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, limit_s), cwd=TESTS.parents[1])
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        lines = (said if isinstance(said, str) else said.decode()).splitlines()
        passed, failed = (sum(f" {word}" in line for line in lines) for word in ("PASSED", "FAILED"))
        return {"error": f"ended after {limit_s:.0f} s: {passed} passed, {failed} failed until then"}
    last = (done.stdout.strip().splitlines() or ["nothing was said"])[-1]
    return {"outcome": last} | ({"error": f"exit code {done.returncode}"} if done.returncode else {})


def scale_of(args: argparse.Namespace) -> sections.Scale:
    """How much of everything the arguments ask for."""
    jpegs = tuple(path for path in photographs(args.folder) if path.read_bytes()[:2] == b"\xff\xd8")
    return (sections.Scale.small if args.small else sections.Scale)(device=args.device, photos=jpegs)


def check(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All sections, the tests, and what follows from them."""
    begun, scale = time.monotonic(), scale_of(args)
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # nothing may wake CUDA up before the processes fork
    context.set_forkserver_preload(["torch", "torchvision", "open_clip"])
    first = context.Process(target=int)  # starts the server that loads torch for all of them, off their clocks
    first.start()
    first.join()
    facts: Facts = {}
    result = {"device": args.device, "facts": facts}

    def keep() -> None:  # should all of it be ended
        if args.report:
            args.report.parent.mkdir(parents=True, exist_ok=True)
            args.report.with_suffix(".json").write_text(json.dumps({"machine": on, **result}, indent=1))

    on = harness.machine()
    for section in plan(scale):
        facts[section.name] = measure(section, scale, begun + ALL_S * scale.patience, context)
        print(f"  {section.name}: {facts[section.name]}", file=sys.stderr, flush=True)
        keep()
    facts["tests/gpu"] = run_tests(args.device, begun + ALL_S - time.monotonic())
    keep()
    took_s = time.monotonic() - begun
    body = f"{len(scale.photos)} photographs, batches of {scale.batch}, {took_s:.0f} s in all.\n\n"
    body += tables(facts, scale.models)
    if args.report:
        picture = args.report.with_suffix(".png")
        draw(facts, {model: catalog.gflop(model) for model in scale.models}, picture)
        body += f"\n\n![roofline]({picture.name})"
    return body, result


# what follows from the facts


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


BENCHMARK = Benchmark(
    title="GPU check on {device}",
    expected="end to end at least 0.95 of the slowest of reading, decoding and encoding; encoding at least 40% of the "
    "matrix product's rate for ViT-B-32 and 55% for ViT-L-14; decoding at least 1.5 times the best of DALI's defaults "
    "and torchvision; 10 times open_clip with a DataLoader on ViT-B-32, 25 times NeMo Curator's published 112 images/s "
    "on ViT-L-14; cosine at least 0.999 in the mean and 0.99 at worst, 99% the same top label; no image and no process "
    "lost with the pre-check on. On a CPU none of this is meant: reading, decoding and encoding share the cores.",
    measure=check,
    folder=True,
    options={
        "device": ("cuda:0", "to check"),
        "small": (False, "as little as possible, with the embedded model"),
    },
)

if __name__ == "__main__":
    harness.run(__doc__ or "", {"check": BENCHMARK})
