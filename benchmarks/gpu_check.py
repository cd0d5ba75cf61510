"""Is clipbatch at the GPU's limit, and how far ahead of others? One command for a machine with a GPU, offline.

    make gpu-check            (python benchmarks/gpu_check.py --report benchmarks/results/DATE-gpu-check.md)
    python benchmarks/gpu_check.py --device cpu --small       the same code at small scale, to see that it runs

From photographs and models with random weights: the crash probe (one unparseable image in a batch, with and without
the pre-check), ceilings, end to end per model, decoders, the share of the JPEG engines, parity, peers, and the tests of
tests/gpu. Each section runs in a process of its own, with a time limit, and all of them within ten minutes; what is not
there at the end is "not measured". A process that dies is a result. Prints a table and a line of JSON, writes a dated
report with a roofline (PNG).
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

import gpu_sections as sections
import harness as timing
from clipbatch.config import models
from contestants import DEMO_IMAGES, SHARED_PHOTOS, photographs
from gpu_facts import EXPECTED, Facts, tables
from peers import PEERS
from roofline import draw

ALL_S = 540.0
"""Leaves a minute of the ten for imports and the roofline."""
TESTS = Path(__file__).resolve().parents[1] / "tests" / "gpu"
DONE = "done"
CHECKED = "with the pre-check"
FULL = ("ViT-B-32", "ViT-B-16", "ViT-L-14")


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
    budgets = dict(zip(FULL, (50, 55, 70), strict=True))
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


def main() -> None:
    parser = timing.arguments("Check clipbatch on a GPU: crash probe, ceilings, speed, parity, peers, tests.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="as little as possible, with the embedded model")
    args = parser.parse_args()
    on, begun = timing.machine(), time.monotonic()
    scale = scale_of(args)
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # nothing may wake CUDA up before the processes fork
    context.set_forkserver_preload(["torch", "torchvision", "open_clip"])
    first = context.Process(target=int)  # starts the server that loads torch for all of them, off their clocks
    first.start()
    first.join()
    facts: Facts = {}
    result = {"machine": on, "device": args.device, "facts": facts}
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
    for section in plan(scale):
        facts[section.name] = measure(section, scale, begun + ALL_S * scale.patience, context)
        print(f"  {section.name}: {facts[section.name]}", file=sys.stderr, flush=True)
        if args.report:  # kept, should all of it be ended
            args.report.with_suffix(".json").write_text(json.dumps(result, indent=1))
    facts["tests/gpu"] = run_tests(args.device, begun + ALL_S - time.monotonic())
    body = tables(facts, scale.models)
    if args.report:
        picture = args.report.with_suffix(".png")
        draw(facts, {model: models.gflop(model) for model in scale.models}, picture)
        body += f"\n\n![roofline]({picture.name})"
    body = (
        f"{len(scale.photos)} photographs, batches of {scale.batch}, {time.monotonic() - begun:.0f} s in all.\n\n"
        + body
    )
    if args.report:
        args.report.with_suffix(".json").write_text(json.dumps(result, indent=1))
    timing.finish(f"GPU check on {args.device}", body, EXPECTED, result, args.report)


def scale_of(args: argparse.Namespace) -> sections.Scale:
    """How much of everything the arguments ask for."""
    photos = tuple(photographs(args.folder))
    jpegs = tuple(path for path in photos if path.read_bytes()[:2] == b"\xff\xd8")
    if args.small:
        return sections.Scale(
            device=args.device,
            photos=jpegs[:16],
            models=(models.DEMO,),
            images=16,
            batch=8,
            rounds=1,
            copy_mib=16,
            matmul=256,
            crash_batches=(64,),
            loads=(0.5,),
            patience=8,
        )
    return sections.Scale(
        device=args.device,
        photos=jpegs,
        models=FULL,
        images=16384,
        batch=256,
        rounds=3,
        copy_mib=4096,
        matmul=8192,
        crash_batches=(64, 256),
        loads=(0.0, 0.3, 0.5, 0.65, 0.8, 0.95),
        patience=1,
    )


if __name__ == "__main__":
    main()
