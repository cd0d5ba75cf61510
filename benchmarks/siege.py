"""What attacks on the service cost its other clients; kills of a spool's service; what decoding apart costs.

python benchmarks/siege.py siege [--minutes 60] [--clients 2] [--report PATH]
python benchmarks/siege.py kills [--kills 50] [--report PATH]
python benchmarks/siege.py apart [FOLDER] [--rounds 10] [--report PATH]

siege   healthy clients ask for images in peace, then beside the attacks of tests/support/attacks.py, all at once: no
        request of theirs may be lost or answered wrongly
kills   SIGKILL to the service in each phase of a job, then another service: every job has to be done exactly once,
        with the tables of undisturbed work
apart   in turns: images/s of a stream that is decoded in the process of the model and in one of its own
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import harness
from fixtures import about, photographs
from harness import Benchmark
from processes import scratch_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.attacks import (
    ATTACKS,
    DEADLY,
    Target,
    attacked_by_a_process,
    deadly_image,
    healthy,
    memory_mib,
)
from tests.support.corpus import make_folder
from tests.support.serving import serving
from tests.support.spool_kills import PHASES, kill_in

from clipbatch import Classifier
from clipbatch.config import from_flat, models

_SAMPLE_S = 5.0


def deadly_environment(scratch: Path) -> dict[str, str]:
    """What preloads the library that ends a process over one image."""
    library, source = scratch / "deadly.so", Path(__file__).parents[1] / "tests" / "faults" / "deadly.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {
        "LD_PRELOAD": str(library),
        "DEADLY_BYTES": str(3 * DEADLY[0] * DEADLY[1]),
        "DEADLY_SIGNAL": str(int(signal.SIGSEGV)),
    }


def siege(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Healthy clients in peace and under attack."""
    with scratch_folder() as scratch:
        folder, spool = scratch / "images", scratch / "spool"
        make_folder(folder, 60, seed=4, bad_fraction=0.1)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        with Classifier(model=models.DEMO, labels="cifar10", device="cpu", root=folder) as classifier:
            expected = {row["uri"]: row for row in classifier.classify(names).to_pylist()}
        environment = deadly_environment(scratch)
        with serving(spool, "--http", "0", "--root", folder, **environment) as service:
            target = Target(service.url, folder, expected, spool, deadly_image(scratch / "deadly.jpg"))
            healthy(target, 10, args.clients)
            memory, stop = list[float](), threading.Event()

            def sample() -> None:
                while not stop.wait(_SAMPLE_S):
                    memory.append(memory_mib(service.process.pid))

            peace = healthy(target, min(120.0, 12 * args.minutes), args.clients)
            sampler = threading.Thread(target=sample)
            sampler.start()
            with attacked_by_a_process(target):
                war = healthy(target, 60 * args.minutes, args.clients)
            stop.set()
            sampler.join()
            alive = service.process.poll() is None
            code = service.end(signal.SIGTERM)
            traces = sum("Traceback" in line for line in service.said)
    fifth = max(1, len(memory) // 5)
    first, last = (sum(some) / len(some) for some in (memory[fifth : 2 * fifth] or memory, memory[-fifth:]))
    rows = [
        (what, f"{len(result.seconds):,}", str(len(result.wrong)), *(f"{1000 * result.share(p):.0f}" for p in (50, 99)))
        for what, result in (("in peace", peace), ("under attack", war))
    ]
    attacks = [(name, f"{target.counts.get(name, 0):,}", f"{pause:g}") for name, (_, pause) in ATTACKS.items()]
    ratio = war.share(99) / peace.share(99)
    wrong = Counter([*war.wrong, *peace.wrong]).most_common(5)
    surprises = Counter(target.surprises).most_common(5)
    body = (
        f"{args.minutes} minutes of attack, {args.clients} healthy clients, {models.DEMO}; the attackers work on the "
        "same cores, at low priority.\n\n"
        + harness.table(("healthy requests", "answered", "lost or wrong", "median ms", "99% within ms"), rows)
        + f"\n\n99% within {ratio:.1f} times their time in peace. Memory of the service and its processes: "
        f"{first:,.0f} MiB in the second fifth of the siege, {last:,.0f} MiB in the last "
        f"({100 * (last / first - 1):+.0f}%). Lived: "
        f"{'yes' if alive else 'no'}; exit code {code}; traces {traces}.\n\n"
        + harness.table(("attack", "times", "s between two"), attacks)
        + (f"\n\nLost or wrong: {wrong}" if wrong else "")
        + (f"\n\nAnswers to attackers that should not be: {surprises}" if surprises else "")
    )
    figures = {"wrong": len(war.wrong), "ratio_99": ratio, "memory_mib": [first, last], "surprises": len(surprises)}
    return body, figures


def kills(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """A spool's service is killed in each phase of a job."""
    rows, wrong = [], list[str]()
    with tempfile.TemporaryDirectory() as text:
        os.environ |= {"XDG_CACHE_HOME": f"{text}/cache", "HF_HUB_OFFLINE": "1"}
        for phase in PHASES:
            begun = time.perf_counter()
            done = kill_in(phase, Path(text, phase), args.kills)
            shutil.rmtree(Path(text, phase))
            wrong += done.wrong
            rows.append(
                (phase, str(done.kills), str(done.jobs), str(len(done.wrong)), f"{time.perf_counter() - begun:.0f}")
            )
    table = harness.table(("phase", "kills", "jobs", "jobs lost, done twice or with other rows", "s"), rows)
    return table + (f"\n\n{wrong[:5]}" if wrong else ""), {"wrong": len(wrong)}


def apart(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Decoding in the model's process and in one of its own."""
    photos = photographs(args.folder)
    files = [str(photos[number % len(photos)]) for number in range(args.images)]
    settings = from_flat({"model": models.DEMO, "labels": "cifar10", "device": "cpu"})
    with Classifier.of(settings) as here, Classifier.of(settings, decode_apart=True) as elsewhere:

        def stream(classifier: Classifier) -> dict[str, float]:
            begun = time.perf_counter()
            count = sum(len(results) for results in classifier.stream(iter(files)))
            return {"images/s": count / (time.perf_counter() - begun)}

        ways = {"here": lambda: stream(here), "apart": lambda: stream(elsewhere)}
        rates = harness.take_turns(ways, args.rounds)["images/s"]
    table = harness.spread_table("decoding", {"images/s": (rates, 0)})
    compared, ratios = harness.compare(rates, {"apart / here": ">= 0.9"})
    return f"{models.DEMO}. {about(photos, args.rounds)}\n\n{table}\n\n{compared}", {"ratios": ratios}


BENCHMARKS = {
    "siege": Benchmark(
        title="A siege of the service",
        expected="no healthy request is lost or wrong, 99% of them are answered within three times their time in "
        "peace, memory stays flat within 10%, the service lives and ends with exit code 0 and without a trace.",
        measure=siege,
        options={"minutes": (60.0, "of attack"), "clients": (2, "healthy ones")},
    ),
    "kills": Benchmark(
        title="A service that is killed in each phase of a job",
        expected="every job is done exactly once, with the rows of undisturbed work.",
        measure=kills,
        options={"kills": (50, "in each phase")},
    ),
    "apart": Benchmark(
        title="What decoding in a process of its own costs the service",
        expected="less than 10% of the images/s.",
        measure=apart,
        folder=True,
        options={"rounds": (10, "that count"), "images": (1000, "in a round")},
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
