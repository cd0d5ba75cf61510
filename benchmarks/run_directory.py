"""What the run directory costs: planning a large manifest, resuming, writing parts, the report, scoring again.

    python benchmarks/run_directory.py plan [--rows 20000000] [--formats txt,parquet,csv,jsonl] [--rounds N]
    python benchmarks/run_directory.py resume [--shards 100000] [--rounds N]
    python benchmarks/run_directory.py write [--labels 1000] [--rows 65536] [--layout L] [--compression C] [--core N]
    python benchmarks/run_directory.py report [--rows 1000000] [--labels cifar10,imagenet1k] [--rounds N]
    python benchmarks/run_directory.py rescore [--images 3000] [--rows 1000000] [--vit-images 600] [--vit-rows 300000]

Commands run in processes of their own, as a user starts them, and their seconds count from start to end.

plan: a manifest in each format (a path of about 45 characters for each row; in the tables also an int64 and a word of a
    thousand); then `plan` again, which digests the manifest to see that it is the one that was planned, and `status`.
    CSV and JSON lines are read twice, as a column's type is decided by all of its values.
resume: of a run of many shards of one image each, whose parts are copies of one part that clipbatch made.
write: clipbatch's writer, fed with scored batches as the scoring stage hands them over, beside pyarrow that gets the
    whole table at once; both end with the file on the disk (fsync). All on one core.
report: over parts that clipbatch's writer made of drawn scores, 2 in 100 rows bad, one part a minute and a pause of
    nine hours between them; the peak memory is of the report and of its thumbnailer, each for itself.
rescore: saved embeddings with new labels, beside labelling the images. Its source is written by clipbatch's writer with
    random unit vectors, since labelling a million images takes hours. Rows by the seconds of the whole command without
    those in which the model is loaded.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import harness
import processes
from clipbatch.config import from_flat, models
from clipbatch.rundir.checksum import digest
from clipbatch.rundir.counts import CACHE
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.part_file import options
from clipbatch.rundir.row_group import RowGroup
from clipbatch.runs import plan as planner
from clipbatch.stages.write import Write
from fixtures import MADE_UP_FACTS, draw_pool, drawn_batches, embedded_run, list_names, reported_run, write_manifest
from harness import Benchmark

DEMO = ("--labels", "cifar10", "--model", models.DEMO, "--device", "cpu")
ROUNDS = {"rounds": (3, "that count")}

# plan

PLAN_COLUMNS = {
    "rows/s": 0,
    "rows per CPU second": 0,
    "plan, s": 1,
    "peak MiB": 0,
    "again, s": 1,
    "again, peak MiB": 0,
    "status, s": 1,
}


def plan(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Planning by the format of the manifest."""
    formats = args.formats.split(",")
    with processes.scratch_folder() as scratch:
        for suffix in formats:  # in a process of its own, since a child's peak begins with its parent's size
            processes.run_command(processes.in_own_process(write_manifest, args.rows, scratch / f"manifest.{suffix}"))

        def measured(suffix: str) -> dict[str, float]:
            manifest, out = scratch / f"manifest.{suffix}", scratch / f"run-{suffix}"
            first = processes.run_clipbatch("plan", manifest, *DEMO, "--out", out, "--overwrite")
            RunDir(out).freeze_model(MADE_UP_FACTS)  # without it, planning begins anew
            again = processes.run_clipbatch("plan", manifest, *DEMO, "--out", out)
            status = processes.run_clipbatch("status", out)
            figures = (args.rows / first.wall_s, args.rows / first.cpu_s, first.wall_s, first.peak_mib)
            return dict(zip(PLAN_COLUMNS, (*figures, again.wall_s, again.peak_mib, status.wall_s), strict=True))

        figures = harness.take_turns({suffix: lambda s=suffix: measured(s) for suffix in formats}, args.rounds)
    columns = {name: (figures[name], digits) for name, digits in PLAN_COLUMNS.items()}
    body = f"{args.rows:,} rows, {args.rounds} rounds; median (min-max).\n\n{harness.spread_table('', columns)}"
    return body, {"rows": args.rows} | {name: harness.spreads(values) for name, values in figures.items()}


# resume


def resume(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What finished shards cost a run that is started again."""
    with processes.scratch_folder() as scratch:
        (scratch / "one").mkdir()
        draw_pool(scratch / "pool")
        listed, out = list_names([scratch / "pool" / "0000.jpg"], args.shards, scratch / "list.txt"), scratch / "out"
        processes.run_clipbatch("plan", listed, *DEMO, "--batch-size", 1, "--shard-size", 1, "--out", out)
        processes.run_clipbatch("run", "--out", out, "--shards", "0", "--quiet")
        run, shards = RunDir(out), args.shards
        part = Path(str(run.part(0, shards))).read_bytes()
        for shard in range(1, shards):
            Path(str(run.part(shard, shards))).write_bytes(part)
        os.sync()

        def again(*missing: Path) -> float:
            for path in missing:
                path.unlink(missing_ok=True)
            return processes.run_clipbatch("run", "--out", out, "--quiet").wall_s

        seconds = harness.interleave(
            {
                "status": lambda: processes.run_clipbatch("status", out).wall_s,
                "run, nothing to do": again,
                "run, one shard open": lambda: again(Path(str(run.part(shards - 1, shards)))),
                "run, all footers to be read": lambda: again(out / CACHE),
            },
            args.rounds,
        )
    wanted = {"status": "2", "run, nothing to do": "5"}
    rows = [
        [name, value.text(2), f"{1e3 * value.median / shards:.4f}", wanted.get(name, "")]
        for name, value in harness.spreads(seconds).items()
    ]
    header = ("command", "seconds", "ms a shard", "at most, s, for 100,000")
    body = f"{shards} finished shards, {args.rounds} rounds; median (min-max).\n\n{harness.table(header, rows)}"
    return body, {"shards": shards, "seconds": harness.spreads(seconds)}


# write


def write(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """clipbatch's writer beside pyarrow's, on one core."""
    os.sched_setaffinity(0, {args.core})
    pa.set_cpu_count(1)
    with processes.scratch_folder() as scratch:
        (scratch / "labels.txt").write_text("".join(f"label {number}\n" for number in range(args.labels)))
        names = list_names((f"photos/{number:09d}.jpg" for number in range(args.rows)), args.rows, scratch / "rows.txt")
        settings = {"inputs": [str(names)], "labels": str(scratch / "labels.txt"), "model": models.DEMO}
        settings |= {"device": "cpu", "layout": args.layout, "compression": args.compression}
        settings |= {"batch_size": args.batch, "shard_size": -(-args.rows // args.batch) * args.batch}
        plan, run = planner.plan(from_flat(settings), scratch / "run"), RunDir(scratch / "run")
        run.make_parts()
        batches = list(drawn_batches(run, plan, 0, np.random.default_rng(0)))
        writer = Write(run, plan, fingerprint="f" * 64, score="softmax", embedding=0)

        def ours() -> None:
            for batch in batches:
                writer(batch)

        ours()
        part = Path(str(run.part(0, plan.shards)))
        data, whole, group_rows = part.read_bytes(), pq.read_table(part), pq.read_metadata(part).row_group(0).num_rows
        same = options(whole.schema, args.compression)
        sizes = {"clipbatch": len(data)}

        def bare(name: str, how: dict[str, Any]) -> Callable[[], None]:
            def write_table() -> None:
                with open(scratch / "bare", "wb") as file:
                    pq.write_table(whole, file, row_group_size=group_rows, **how)
                    file.flush()
                    os.fsync(file.fileno())
                    sizes[name] = file.tell()

            return write_table

        def fill() -> None:
            group = RowGroup(plan.labels, plan.run_settings().output, capacity=group_rows, embedding=0)
            for batch in batches:
                group.add(batch)
                if group.filled + args.batch > group.capacity or batch.source.last:
                    group.take()

        others: dict[str, dict[str, Any]] = {"same options": same, "its defaults, zstd": {"compression": "zstd"}}
        others |= {f"same but {kind}": {**same, "compression": kind} for kind in ("lz4", "none")}
        work: dict[str, Callable[[], object]] = {"clipbatch": ours}
        work |= {f"pyarrow, {name}": bare(f"pyarrow, {name}", how) for name, how in others.items()}
        work |= {"filling row groups alone": fill, "the seal's digest alone": lambda: digest(data)}

        def rows_of(one: Callable[[], object]) -> Callable[[], int]:
            def count() -> int:
                one()
                return int(args.rows)

            return count

        turns = {name: harness.counted(rows_of(one)) for name, one in work.items()}
        figures = harness.take_turns(turns, args.rounds)
    columns = {"rows/s": (figures["per s"], 0), "rows per CPU second": (figures["per CPU s"], 0)}
    per_row = {name: [size / args.rows] for name, size in sizes.items()}
    pair = {"clipbatch / pyarrow, same options": ">= 0.9"}
    (by_clock, wall), (by_cpu, cpu) = (harness.compare(figures[name], pair) for name in ("per s", "per CPU s"))
    body = (
        f"{args.rows} rows, {args.labels} labels, batches of {args.batch}, {args.layout}, {args.compression}, row "
        f"groups of {group_rows} rows, on core {args.core} alone, {args.rounds} rounds.\n\n"
        f"{harness.spread_table('', {**columns, 'bytes a row': (per_row, 0)})}\n\n"
        f"By the clock:\n\n{by_clock}\n\nBy CPU time:\n\n{by_cpu}"
    )
    return body, {"rows_per_s": harness.spreads(figures["per s"]), "wall": wall, "cpu": cpu}


# report

REPORT_COLUMNS = {"seconds": 1, "peak MiB, report": 0, "thumbnailer": 0, "page, kB": 0}


def report(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """`clipbatch report` on runs of many rows."""
    label_sets = args.labels.split(",")
    with processes.scratch_folder() as scratch:
        listed = list_names(draw_pool(scratch / "pool"), args.rows, scratch / "images.txt")
        for labels in label_sets:
            reported_run(listed, labels, scratch / labels)

        def measured(out: Path) -> dict[str, float]:
            begun = time.perf_counter()
            peaks = processes.watch(
                processes.clipbatch_command("report", out),
                0.1,
                lambda pid, _: (processes.resident_mib(pid), sum(map(processes.resident_mib, processes.children(pid)))),
            )
            seconds, (own, theirs) = time.perf_counter() - begun, map(max, zip(*peaks, strict=True))
            size_kb = (out / "report.html").stat().st_size / 1000
            return dict(zip(REPORT_COLUMNS, (seconds, own, theirs, size_kb), strict=True))

        figures = harness.take_turns(
            {labels: lambda o=scratch / labels: measured(o) for labels in label_sets}, args.rounds
        )
    columns = {name: (figures[name], digits) for name, digits in REPORT_COLUMNS.items()}
    body = f"{args.rows:,} rows, {args.rounds} rounds; median (min-max).\n\n{harness.spread_table('labels', columns)}"
    return body, {"rows": args.rows} | {name: harness.spreads(values) for name, values in figures.items()}


# rescore


def rescore(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Scoring saved embeddings beside labelling the images."""
    tables, result = [], {}
    sizes = {models.DEMO: (args.images, args.rows), "ViT-B-32": (args.vit_images, args.vit_rows)}
    for model, (images, rows) in sizes.items():
        with processes.scratch_folder() as scratch:
            rates = rescored(model, images, rows, args.rounds, scratch)
        compared, ratios = harness.compare(rates, {"rescore / run": ">= 100"})
        result[model] = {**harness.spreads(rates), "ratios": ratios}
        title = f"{model}, {images} images, {rows} rows"
        tables.append(f"{harness.spread_table(title, {'images or rows/s': (rates, 0)})}\n\n{compared}")
    return "\n\n".join(tables), {"models": result}


def rescored(model: str, images: int, rows: int, rounds: int, scratch: Path) -> harness.Figures:
    """Images/s of labelling, rows/s of scoring again."""
    from contestants import random_model

    photos, source, labelled = sorted(harness.DEMO_IMAGES.glob("*-?.jpg")), scratch / "source", scratch / "labelled"
    few, many = (list_names(photos, count, scratch / f"{count}.txt") for count in (images, rows))
    chosen = [word for name, value in random_model(model, scratch).items() for word in (f"--{name}", value)]

    def report_of(*command: object) -> dict[str, Any]:
        report: dict[str, Any] = processes.run_report(*command, "--device", "cpu", "--overwrite")[0]["this_run"]
        return report

    def label() -> float:
        command = ("run", few, *chosen, "--labels", "cifar10", "--embeddings", "--out", labelled)
        return float(report_of(*command)["images_per_s"])

    def again() -> float:
        if not source.exists():
            embedded_run(labelled, many, source)
        report = report_of("rescore", source, "--labels", "documents-27", "--out", scratch / "new")
        if report["rows"] != rows:
            raise SystemExit(f"{report['rows']} of {rows} rows were scored again")
        return float(report["images_per_s"])

    return harness.interleave({"run": label, "rescore": again}, rounds)


BENCHMARKS = {
    "plan": Benchmark(
        title="Planning",
        expected="at least 1,000,000 rows/s for Parquet and 500,000 for text, peak memory below 1 GiB, planning again "
        "within 5 s, status within 2 s, for twenty million rows; forty million are planned within 60 s and 1 GiB, too.",
        measure=plan,
        options={"rows": (20_000_000, "of the manifest"), "formats": ("txt,parquet,csv,jsonl", "of it"), **ROUNDS},
    ),
    "resume": Benchmark(
        title="Resuming a run of many finished shards",
        expected="a finished shard costs far less than 20 ms to skip; a run of 100,000 resumes within 5 s, and status "
        "takes less than 2 s. One shard open includes loading the model. Footers are read only for parts that are new.",
        measure=resume,
        options={"shards": (100_000, "of the run"), "rounds": (5, "that count")},
    ),
    "write": Benchmark(
        title="Writing parts on one core",
        expected="50,000 rows/s or more at 1,000 labels, and 0.9 or more of pyarrow's rate with the same options, "
        "which is the ceiling.",
        measure=write,
        options={
            "labels": (1_000, "of the run"),
            "rows": (65_536, "of the part"),
            "batch": (256, "rows"),
            "layout": ("list", "as for clipbatch run"),
            "compression": ("zstd", "as for clipbatch run"),
            "core": (0, "the one to run on"),
            "rounds": (5, "that count"),
        },
    ),
    "report": Benchmark(
        title="A report on a million rows",
        expected="a million rows within 60 s and 1 GiB, a page under 5 MB; memory by the number of labels, not "
        "of rows.",
        measure=report,
        options={
            "rows": (1_000_000, "of the run"),
            "labels": ("cifar10,imagenet1k", "label sets, a run each"),
            **ROUNDS,
        },
    ),
    "rescore": Benchmark(
        title="Scoring saved embeddings with new labels",
        expected="100 times the rate of a run over the images, or more.",
        measure=rescore,
        options={
            "images": (3_000, "labelled with the embedded model"),
            "rows": (1_000_000, "rescored, embeddings of 96 numbers"),
            "vit_images": (600, "labelled with ViT-B-32, with random weights"),
            "vit_rows": (300_000, "rescored, embeddings of 512 numbers"),
            **ROUNDS,
        },
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
