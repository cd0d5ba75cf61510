"""Is clipbatch at the GPU's limit, and how far ahead of others? One command for a machine with a GPU, offline.

    make gpu-check            (python benchmarks/gpu_check.py --report benchmarks/results/DATE-gpu-check.md)
    python benchmarks/gpu_check.py --device cpu --small       the same code at small scale, to see that it runs

From photographs and models with random weights, what tells most first: one JPEG, a first run, a batch with an image
that nothing can parse (with and without the pre-check), the JPEG engines and their share, decoding and encoding alone,
end to end for each model, the tests of tests/gpu, one peer; then, with more `--minutes`, parity and the other peers.
`gpu_decoding.py` and `gpu_sections.py` measure, `gpu_report.py` judges. Each section runs in a process of its own, with
a time limit, and all of them within `--minutes`; those for which no time is left are named. A process that dies is a
result. With `--report` the facts so far are written as JSON after each section, and at the end a roofline (PNG).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gpu_decoding as decoding
import gpu_report as reports
import gpu_sections as sections
import harness
from clipbatch.config import models as catalog
from fixtures import photographs
from gpu_report import Facts
from gpu_tensorrt import tensorrt
from harness import Benchmark
from peers import PEERS

REPORT_S = 15.0
"""Kept for the report, of all the time there is."""
LEAST_S = 5.0
"""With less time left, a section is not begun."""
NO_TIME = "no time was left"
DONE = "done"
CHECKED = "with the pre-check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Something to measure."""

    name: str
    budget_s: float
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()


def plan(scale: sections.Scale) -> list[Section]:
    """All sections, what tells most first."""
    (first_peer, *other_peers), models = _peers(scale), scale.models
    budgets = dict(zip(sections.FULL, (50, 50, 60), strict=True))
    return [
        Section(name="one JPEG", budget_s=30, work=decoding.mixed),
        Section(name="first contact", budget_s=60, work=sections.first_contact),
        *(
            Section(name=f"crash probe {batch}, {how}", budget_s=30, work=decoding.crash, arguments=(batch, checked))
            for batch in scale.crash_batches
            for how, checked in ((CHECKED, True), ("without", False))
        ),
        Section(name="JPEG engines", budget_s=30, work=decoding.engines),
        Section(name="hw_decoder_load", budget_s=40, work=decoding.split),
        Section(name="decoding alone", budget_s=45, work=decoding.decoders),
        Section(name="ceilings", budget_s=20, work=sections.ceilings),
        Section(name="encoding alone", budget_s=75, work=sections.encode),
        *(
            Section(name=model, budget_s=budgets.get(model, 50), work=sections.model, arguments=(model,))
            for model in models
        ),
        Section(name="tests/gpu", budget_s=100, work=sections.tests, arguments=(sections.GPU_TESTS,)),
        first_peer,
        Section(name="parity", budget_s=45, work=sections.parity),
        *other_peers,
        Section(name=f"TensorRT, {models[0]}", budget_s=150, work=tensorrt, arguments=(models[0],)),
    ]


def _peers(scale: sections.Scale) -> list[Section]:
    found = []
    for peer in PEERS:
        which = scale.models[-1] if "NeMo" in peer else scale.models[0]
        part = 16 if "NeMo" in peer or "Hugging" in peer else 4 if "retrieval" in peer else 2  # the slow ones do fewer
        arguments = (peer, which, max(scale.batch, scale.images // part))
        found.append(Section(name=f"peer {peer}, {which}", budget_s=28, work=sections.peer, arguments=arguments))
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
    begun, budget_s = time.monotonic(), section.budget_s * scale.patience
    if begun > until - LEAST_S:
        return {"error": NO_TIME}
    process.start()
    theirs.close()
    limit = min(begun + budget_s, until)
    try:
        while ours.poll(max(0.0, limit - time.monotonic())):
            name, value = ours.recv()
            if name == DONE:
                return facts
            facts[name] = value
        facts["error"] = f"ended after {limit - begun:.0f} s"
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


def scale_of(args: argparse.Namespace, scratch: Path) -> sections.Scale:
    """How much of everything the arguments ask for."""
    jpegs = tuple(path for path in photographs(args.folder) if path.read_bytes()[:2] == b"\xff\xd8")
    kind = sections.Scale.small if args.small else sections.Scale
    return kind(device=args.device, photos=jpegs, scratch=scratch)


def check(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All sections, and what follows from them."""
    begun = time.monotonic()
    until = begun + 60 * args.minutes - REPORT_S
    with tempfile.TemporaryDirectory(prefix="clipbatch-gpu-") as scratch:
        scale = scale_of(args, Path(scratch))
        facts, seconds = _measured(scale, until, args.report)
    body = f"{len(scale.photos)} photographs, batches of {scale.batch}, {time.monotonic() - begun:.0f} s in all.\n\n"
    if left_out := [name for name, found in facts.items() if found.get("error") == NO_TIME]:
        body += f"Left out, as `--minutes {args.minutes:g}` were over: {'; '.join(left_out)}.\n\n"
    body += reports.tables(facts, scale.models, seconds)
    if args.report:
        picture = args.report.with_suffix(".png")
        reports.draw(facts, {model: catalog.gflop(model) for model in scale.models}, picture)
        body += f"\n\n![roofline]({picture.name})"
    return body, {"device": args.device, "facts": facts, "seconds": seconds, "left out": left_out}


def _measured(scale: sections.Scale, until: float, report: Path | None) -> tuple[Facts, dict[str, float]]:
    """The facts and the seconds of each section. report: beside which they are written, section by section."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # nothing may wake CUDA up before the processes fork
    context.set_forkserver_preload(["torch", "torchvision", "open_clip"])
    first = context.Process(target=int)  # starts the server that loads torch for all of them, off their clocks
    first.start()
    first.join()
    facts: Facts = {}
    seconds: dict[str, float] = {}
    on = harness.machine()
    for section in plan(scale):
        begun = time.monotonic()
        facts[section.name] = measure(section, scale, until, context)
        seconds[section.name] = round(time.monotonic() - begun, 1)
        print(f"  {section.name}, {seconds[section.name]} s: {facts[section.name]}", file=sys.stderr, flush=True)
        if report:  # should all of it be ended
            report.parent.mkdir(parents=True, exist_ok=True)
            so_far = {"machine": on, "device": scale.device, "facts": facts, "seconds": seconds}
            report.with_suffix(".json").write_text(json.dumps(so_far, indent=1))
    return facts, seconds


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
        "minutes": (8.0, "for all of it; sections for which no time is left are named"),
        "small": (False, "as little as possible, with the embedded model"),
    },
)

if __name__ == "__main__":
    harness.run(__doc__ or "", {"check": BENCHMARK})
