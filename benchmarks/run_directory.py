"""How fast a large manifest is planned, in how much memory, and how long resuming and asking for the status take.

    python benchmarks/plan.py [--rows 20000000] [--formats txt,parquet,csv,jsonl] [--rounds 3] [--report PATH]

Makes a manifest in each format (a path of about 45 characters for each row; in the tables also an int64 and a word of
a thousand) and times `clipbatch plan` on it in a process of its own, from its start to its end, with the peak of its
resident memory as the kernel counted it (getrusage). Then `clipbatch plan` again, as on resuming, which digests the
manifest to see that it is the one that was planned, and `clipbatch status`. The processor time beside the wall time
tells what the machine's other work took away.

Expected: at least a million rows/s for Parquet and half a million for text, within a GiB; seconds to resume, and a
second or two for the status. CSV and JSON lines are read twice, as a column's type is decided by all of its values.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

import harness as timing
from clipbatch.rundir.layout import RunDir

CHUNK = 1_000_000
LABELS = ("--labels", "cat,dog", "--model", "clipbatch-demo", "--device", "cpu")
EXPECTED = (
    "at least 1,000,000 rows/s for Parquet and 500,000 for text, peak memory below 1 GiB, resuming within 5 s, status "
    "within 2 s."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What a process took."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def tables(rows: int) -> Iterator[pa.Table]:
    """The manifest, a million rows at a time."""
    for first in range(0, rows, CHUNK):
        number = np.arange(first, min(first + CHUNK, rows))
        folder = pc.utf8_lpad(pa.array(number // 1000).cast(pa.string()), 6, "0")
        name = pa.array(number * 2_654_435_761 % 2**40).cast(pa.string())
        words = pa.DictionaryArray.from_arrays(pa.array(number % 1000, pa.int32()), [f"place {n}" for n in range(1000)])
        path = pc.binary_join_element_wise(
            "photos", folder, pc.binary_join_element_wise("image-", name, ".jpg", ""), "/"
        )
        yield pa.table({"path": path, "id": number, "place": words.cast(pa.string())})


def write(rows: int, path: Path) -> None:
    """The manifest in the format that the suffix of `path` says."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, next(tables(1)).schema) as writer:
            for table in tables(rows):
                writer.write_table(table, row_group_size=CHUNK)
        return
    with path.open("wb") as file:
        for number, table in enumerate(tables(rows)):
            _write_text(file, path.suffix, table, header=number == 0)


def _write_text(file: BinaryIO, suffix: str, table: pa.Table, *, header: bool) -> None:
    if suffix == ".csv":
        pacsv.write_csv(table, file, pacsv.WriteOptions(include_header=header, quoting_style="needed"))
        return
    lines = table["path"].combine_chunks()
    if suffix == ".jsonl":
        cells = ['{"path": "', lines, '", "id": ', table["id"].combine_chunks().cast(pa.string())]
        lines = pc.binary_join_element_wise(*cells, ', "place": "', table["place"].combine_chunks(), '"}', "")
    lines = pc.binary_join_element_wise(lines, "\n", "")
    file.write(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])


def clipbatch(*arguments: object) -> Took:
    """Run `clipbatch ARGUMENTS` to its end."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "clipbatch", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"clipbatch {' '.join(map(str, arguments))} ended with {process.returncode}")
    return Took(wall_s=took_s, cpu_s=usage.ru_utime + usage.ru_stime, peak_mib=usage.ru_maxrss / 1024)


def measure(folder: Path, suffix: str, rows: int, rounds: int) -> dict[str, timing.Spread]:
    """The figures of one format."""
    manifest, out = folder / f"manifest.{suffix}", folder / f"run-{suffix}"
    maker = multiprocessing.get_context("spawn").Process(target=write, args=(rows, manifest))
    maker.start()  # of its own, since a child's peak begins with its parent's size
    maker.join()
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        planned = clipbatch("plan", manifest, *LABELS, "--out", out, "--overwrite")
        RunDir(out).freeze_model({"model": "as the first worker would record it"})  # without it, planning begins anew
        again, status = clipbatch("plan", manifest, *LABELS, "--out", out), clipbatch("status", out)
        figures = {
            "rows_per_s": rows / planned.wall_s,
            "rows_per_cpu_s": rows / planned.cpu_s,
            "plan_s": planned.wall_s,
            "plan_cpu_s": planned.cpu_s,
            "peak_mib": planned.peak_mib,
            "resume_s": again.wall_s,
            "resume_mib": again.peak_mib,
            "status_s": status.wall_s,
        }
        print(f"  round {number + 1} of {rounds}: {suffix} {planned}", file=sys.stderr, flush=True)
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    manifest.unlink()
    return {name: timing.spread(values) for name, values in found.items()}


def main() -> None:
    parser = timing.arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--formats", default="txt,parquet,csv,jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machine = timing.machine()
    with tempfile.TemporaryDirectory() as folder:
        result = {
            suffix: measure(Path(folder), suffix, arguments.rows, arguments.rounds)
            for suffix in arguments.formats.split(",")
        }
    header = ["", "rows/s", "rows/s of processor time", "plan, s", "peak MiB", "resume, s", "status, s"]
    body = [
        [
            suffix,
            *(f"{found[name].median:,.0f}" for name in ("rows_per_s", "rows_per_cpu_s")),
            found["plan_s"].text(1),
            found["peak_mib"].text(),
            found["resume_s"].text(1),
            found["status_s"].text(1),
        ]
        for suffix, found in result.items()
    ]
    text = f"{arguments.rows:,} rows, medians of {arguments.rounds} (lowest-highest).\n\n{timing.table(header, body)}"
    timing.finish("Planning", text, EXPECTED, {"machine": machine, "rows": arguments.rows, **result}, arguments.report)


if __name__ == "__main__":
    main()
