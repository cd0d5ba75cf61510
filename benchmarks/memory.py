"""How much memory a run takes, and whether it stays the same however long the run is.

    python benchmarks/memory.py sizes [--sizes 1000,10000,50000]
    python benchmarks/memory.py soak [--images 1000000] [--decoder auto|dali] [--bad-every 50]

Runs `clipbatch run` with the embedded model on the CPU, as a user starts it, on small JPEGs, 2 in 100 of them bad, and
reads from /proc what the supervisor and its worker hold. Resident memory counts pages that both share in each of them,
so the sum is a little too high. Steady state begins two seconds after the worker has loaded the model and ends with
the worker; a run whose steady state has fewer than 8 samples shows its peak only.

sizes: runs of several lengths. Batches in flight are bounded by the queues, and of a shard the worker keeps only the
    rows done until its part is published, with a short peak there. The supervisor grows by the listing that it froze.
soak: one long run, also with open files, threads and rate, by quarters of the steady state. In the end every row must
    be there (`clipbatch verify`), and no worker may have been started again.

A report comes with a plot, PATH with the suffix .png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

import harness
from clipbatch.config import models
from fixtures import BAD_EVERY, draw_pool, list_names
from harness import Benchmark
from processes import children, clipbatch_command, resident_mib, run_clipbatch, scratch_folder, watch

SETTLE_S = 2.0
"""After the model is loaded, until the queues are full and the allocators warm."""
MIN_SAMPLES = 8
SHARD = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a run holds at a moment, and how far it is. Memory in MiB."""

    at_s: float
    loaded: bool
    """Whether the worker has loaded its model."""
    supervisor: float
    worker: float
    supervisor_files: int
    worker_files: int
    supervisor_threads: int
    worker_threads: int
    parts: int

    @property
    def both(self) -> float:
        return self.supervisor + self.worker


def entries(pid: int, kind: str) -> int:
    """Open file descriptors ("fd") or threads ("task") of a process; 0 where it has ended. Source: proc(5)."""
    try:
        return len(os.listdir(f"/proc/{pid}/{kind}"))
    except OSError:
        return 0


def watched_run(source: Path, out: Path, every_s: float, *options: object) -> list[Moment]:
    """Label `source`; a moment every `every_s` seconds."""

    def look(pid: int, at_s: float) -> Moment:
        workers = children(pid)
        return Moment(
            at_s=at_s,
            loaded=(out / "text.npy").exists(),  # the last thing that a worker freezes
            supervisor=resident_mib(pid),
            worker=sum(map(resident_mib, workers)),
            supervisor_files=entries(pid, "fd"),
            worker_files=sum(entries(worker, "fd") for worker in workers),
            supervisor_threads=entries(pid, "task"),
            worker_threads=sum(entries(worker, "task") for worker in workers),
            parts=len(list(out.glob("parts/part-*.parquet"))),
        )

    model = ("--model", models.DEMO, "--labels", "cifar10", "--device", "cpu")
    return watch(clipbatch_command("run", source, *model, *options, "--out", out, "--quiet"), every_s, look)


def steady(moments: list[Moment]) -> list[Moment]:
    """The moments of the steady state."""
    working = [moment for moment in moments if moment.loaded and moment.worker]
    return [moment for moment in working if moment.at_s >= working[0].at_s + SETTLE_S]


def quarters(moments: list[Moment], value: Callable[[Moment], float]) -> list[float]:
    """The mean of `value` in each quarter."""
    size = len(moments) // 4
    return [statistics.mean(map(value, moments[n * size : (n + 1) * size])) for n in range(4)]


def plot(panels: dict[str, dict[str, list[float]]], times: dict[str, list[float]], across: bool, target: Path) -> str:
    """Draw lines over time, a panel each, beside or below one another; returns the picture in Markdown.

    panels: title -> name -> values, at the `times` of that title.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(panels)
    shape, size = ((1, count), (4.5 * count, 4)) if across else ((count, 1), (9, 2.5 * count))
    figure, axes = pyplot.subplots(*shape, sharex=not across, sharey=across, squeeze=False, figsize=size)
    for panel, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for name, values in lines.items():
            panel.plot(times[title], values, label=name)
        panel.set(title=title)
    for panel in axes.flat:
        panel.set_ylim(bottom=0)  # only when every panel has its lines, which may share an axis
    axes.flat[0].legend(loc="center right")
    axes.flat[-1].set_xlabel("seconds")
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return f"\n\n![over time]({target.name})"


def sizes(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Runs of several lengths."""
    counts, results, rows = [int(size) for size in args.sizes.split(",")], [], []
    panels, times = {}, {}
    with scratch_folder() as scratch:
        listed = list_names(draw_pool(scratch / "pool"), max(counts), scratch / "images.txt")
        for count in counts:
            print(f"  {count} images", file=sys.stderr, flush=True)
            out = scratch / f"run-{count}"
            moments = watched_run(listed, out, 0.5, "--limit", count)
            report = json.loads((out / "report.json").read_text())
            if report["rows_done"] != count:
                raise SystemExit(f"{report['rows_done']} of {count} images were done")
            peaks = {who: max(getattr(moment, who) for moment in moments) for who in ("both", "supervisor", "worker")}
            calm, here = steady(moments), report["this_run"]
            means = quarters(calm, lambda moment: moment.both) if len(calm) >= MIN_SAMPLES else []
            results.append({"images": count, "status": report["status"], "restarts": here["restarts"]})
            results[-1] |= {"seconds": here["seconds"], "peak_mib": peaks, "steady_samples": len(calm)}
            results[-1]["quarters_mib"] = [round(mean, 2) for mean in means]
            shown = [f"{means[0]:.0f}", f"{means[-1]:.0f}", f"{growth(means):+.1%}"] if means else ["-"] * 3
            bad = count - report["status"]["ok"]
            rows.append(
                [f"{count:,}", str(bad), f"{here['seconds']:.0f}", *(f"{p:.0f}" for p in peaks.values()), *shown]
            )
            title = f"{count:,} images, MiB"
            times[title] = [moment.at_s for moment in moments]
            panels[title] = {who: [getattr(moment, who) for moment in moments] for who in peaks}
    header = ["images", "bad", "seconds", "peak, both", "supervisor", "worker", "1st quarter", "last quarter", "growth"]
    body = f"Resident memory, MiB, every 0.5 s; quarters of the steady state.\n\n{harness.table(header, rows)}"
    if args.report:
        body += plot(panels, times, True, args.report.with_suffix(".png"))
    return body, {"runs": results}


def growth(means: list[float]) -> float:
    """From the first quarter to the last, as a share of the first."""
    return means[-1] / means[0] - 1


def soak(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One long run."""
    with scratch_folder() as scratch:
        listed = list_names(draw_pool(scratch / "pool", (36, 61), args.bad_every), args.images, scratch / "images.txt")
        out = scratch / "run"
        moments = watched_run(listed, out, 1.0, "--shard-size", SHARD, "--decoder", args.decoder)
        run_clipbatch("verify", out)
        report = json.loads((out / "report.json").read_text())
    here, calm = report["this_run"], steady(moments)
    if len(calm) < MIN_SAMPLES:
        raise SystemExit(f"{args.images} images are done too soon for quarters: give more")
    if report["rows_done"] != args.images or here["restarts"]:
        raise SystemExit(f"{report['rows_done']} of {args.images} rows are done, {here['restarts']} restarts")
    kinds = {"": "MiB", "_files": "open files", "_threads": "threads"}
    means = {
        f"{who}, {what}": quarters(calm, lambda moment, name=who + kind: getattr(moment, name))  # type: ignore[misc]
        for kind, what in kinds.items()
        for who in ("worker", "supervisor")
    }
    means["images/s"] = rates(calm)
    rows = [[name, *(f"{mean:,.1f}" for mean in four), f"{growth(four):+.2%}"] for name, four in means.items()]
    peaks = {who: max(getattr(moment, who) for moment in moments) for who in ("worker", "supervisor")}
    body = (
        f"{args.images:,} rows ({args.images - report['status']['ok']:,} bad) in {here['seconds']:,.0f} s, "
        f"{here['images_per_s']:,.0f} images/s, bound by {here['bottleneck']}; {len(calm)} samples of the steady "
        f"state, one a second. Peaks: worker {peaks['worker']:,.0f} MiB, supervisor {peaks['supervisor']:,.0f} MiB. "
        f"Restarts: {here['restarts']}. Verified: every row is there once.\n\n"
        + harness.table(["", *(f"quarter {number}" for number in (1, 2, 3, 4)), "growth"], rows)
    )
    if args.report:
        panels = {
            what: {who: [getattr(moment, who + kind) for moment in moments] for who in ("worker", "supervisor")}
            for kind, what in kinds.items()
        }
        panels["images in parts"] = {"": [float(moment.parts * SHARD) for moment in moments]}
        times = {title: [moment.at_s for moment in moments] for title in panels}
        body += plot(panels, times, False, args.report.with_suffix(".png"))
    result = {"images": args.images, "decoder": args.decoder, "status": report["status"], "peak_mib": peaks}
    result |= {name: here[name] for name in ("seconds", "images_per_s", "restarts")}
    return body, {**result, "quarters": {name: [round(mean, 2) for mean in four] for name, four in means.items()}}


def rates(moments: list[Moment]) -> list[float]:
    """Images a second in each quarter, from the first part that appears in it to the last."""
    size, result = len(moments) // 4, list[float]()
    for number in range(4):
        quarter = moments[number * size : (number + 1) * size + 1]
        steps = [after for before, after in itertools.pairwise(quarter) if after.parts > before.parts]
        seconds = steps[-1].at_s - steps[0].at_s if len(steps) > 1 else 0.0
        result.append((steps[-1].parts - steps[0].parts) * SHARD / seconds if seconds else float("nan"))
    return result


BENCHMARKS = {
    "sizes": Benchmark(
        title="Memory of a run",
        expected="flat: the last quarter's mean within 5% of the first's, and no higher peak once a run is longer than "
        "a shard. The supervisor, which imports no torch, stays far below the worker.",
        measure=sizes,
        options={"sizes": ("1000,10000,50000", "images of each run")},
    ),
    "soak": Benchmark(
        title="A long run",
        expected="flat: memory within 2%, open files and threads the same, rate within 5%, no restart, no row missing.",
        measure=soak,
        options={
            "images": (1_000_000, "rows of the manifest"),
            "decoder": ("auto", "as for clipbatch run"),
            "bad_every": (BAD_EVERY, "one image in so many is bad"),
        },
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
