"""How fast are parts written, next to bare pyarrow writing the same table? On one core, with what each step costs.

Contestants write the same rows: clipbatch's writer, fed with scored batches as the scoring stage hands them over, and
pyarrow with the same options, given the whole table at once; both end with the file on the disk (fsync). pyarrow with
its own defaults stands beside them. Figures are rows a second of wall time and of CPU time: where others use the
machine, the second is the one to go by.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config import from_flat
from clipbatch.config.labels import LabelGroup, LabelSet
from clipbatch.rundir.checksum import digest
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.part_file import options
from clipbatch.rundir.row_group import RowGroup
from clipbatch.stages.write import Write
from clipbatch.types import Decoded, ItemBatch, Reject, ScoredBatch
from harness import arguments, finish, interleave, machine, ratios, spread, table

EXPECTED = "50,000 rows/s or more at 1,000 labels, and 0.9 or more of pyarrow's rate with the same options"


def plan(labels: int, rows: int, batch: int, settings: dict[str, Any]) -> Plan:
    """The plan of a run with one shard of `rows` rows."""
    phrases = {f"label {number}": ["x"] for number in range(labels)}
    label_set = LabelSet(groups=(LabelGroup(name="", phrases=phrases, templates=["{}"]),))
    given = {"inputs": ["in"], "labels": "a,b", "batch_size": batch, "shard_size": rows}
    return Plan(
        rows=rows,
        identity={"shard_size": rows, "batch_size": batch, **label_set.identity()},
        settings=from_flat(given | settings).flat(),
        manifest_rows=rows,
        manifest_sha256={},
        passed_over={},
        versions={},
    )


def scored(made: Plan, bad: float) -> list[ScoredBatch]:
    """The batches of the shard: softmax of cosines as CLIP has them (0.2 +- 0.03, times 100), some rows bad."""
    rng, labels, size = np.random.default_rng(0), len(made.labels.names), made.batch_size
    found = []
    for at in range(0, made.rows, size):
        logits_BL = rng.normal(20, 3, (size, labels)).astype(np.float32)
        logits_BL = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
        outcomes = [Decoded(width=640, height=480, decoder="torchvision")] * size
        for slot in np.flatnonzero(rng.random(size) < bad):
            outcomes[slot] = Reject(status="truncated", error="the image ends early")  # type: ignore[call-overload]
        rows = pa.table(
            {"row_id": np.arange(at, at + size), "uri": [f"photos/{n:09d}.jpg" for n in range(at, at + size)]}
        )
        source = ItemBatch(shard=0, start=at, items=(), rows=rows, last=at + size == made.rows)
        scores_BL = logits_BL / logits_BL.sum(axis=1, keepdims=True)
        found.append(ScoredBatch(source=source, outcomes=tuple(outcomes), scores_BL=scores_BL, image_BD=None))
    return found


def main() -> None:
    """Parse, measure, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--labels", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=65_536, help="of the part")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--bad", type=float, default=0.02, help="share of bad rows")
    parser.add_argument("--layout", default="list")
    parser.add_argument("--compression", default="zstd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="the one to run on")
    given = parser.parse_args()
    on = machine()
    os.sched_setaffinity(0, {given.core})
    pa.set_cpu_count(1)
    made = plan(given.labels, given.rows, given.batch, {"layout": given.layout, "compression": given.compression})
    batches = scored(made, given.bad)
    cpu: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            work()
            cpu.setdefault(name, []).append(given.rows / (time.process_time() - begun_cpu))
            return given.rows / (time.perf_counter() - begun)

        return run

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        run.make_parts()
        write = Write(run, made, fingerprint="f" * 64, score="softmax", embedding=0)

        def ours() -> None:
            for batch in batches:
                write(batch)

        ours()
        part = Path(folder, "parts", "part-00000.parquet")
        data, metadata = part.read_bytes(), pq.read_metadata(part)
        group_rows, whole = metadata.row_group(0).num_rows, pq.read_table(part)
        same = options(whole.schema, given.compression)

        def bare(name: str, **how: Any) -> Callable[[], None]:
            def write_table() -> None:
                with open(Path(folder, name), "wb") as file:
                    pq.write_table(whole, file, row_group_size=group_rows, **how)
                    file.flush()
                    os.fsync(file.fileno())

            return write_table

        def fill() -> None:
            group = RowGroup(made.labels, made.run_settings().output, capacity=group_rows, embedding=0)
            for batch in batches:
                group.add(batch)
                if group.filled + given.batch > group.capacity or batch.source.last:
                    group.take()

        contestants = {
            "clipbatch": ours,
            "pyarrow, same options": bare("same options", **same),
            "pyarrow, its defaults, zstd": bare("its defaults, zstd", compression="zstd"),
        }
        if given.layout == "list":
            split = {"column_encoding": {"scores.list.element": "BYTE_STREAM_SPLIT"}}
            for name, how in (
                ("BYTE_STREAM_SPLIT", split),
                ("zstd level 3", {"compression": "zstd", "compression_level": 3}),
                ("lz4", {"compression": "lz4"}),
                ("no compression", {"compression": "none"}),
            ):
                contestants[f"pyarrow, {name}"] = bare(name, **(same | how))
        contestants |= {"filling row groups alone": fill, "the seal's digest alone": lambda: digest(data)}
        figures = interleave({name: timed(name, work) for name, work in contestants.items()}, given.rounds)
        sizes = {f"pyarrow, {path.name}": path.stat().st_size for path in Path(folder).iterdir() if path.is_file()}
        sizes["clipbatch"] = len(data)
    rows = [
        [
            name,
            spread(figures[name]).text(),
            spread(cpu[name][1:]).text(),
            f"{sizes[name] / given.rows:.0f}" if name in sizes else "",
        ]
        for name in contestants
    ]
    wall = ratios(figures["clipbatch"], figures["pyarrow, same options"])
    busy = ratios(cpu["clipbatch"][1:], cpu["pyarrow, same options"][1:])
    body = (
        f"{given.rows} rows, {given.labels} labels, batches of {given.batch}, {given.bad:.0%} bad, {given.layout},"
        f" {given.compression}, row groups of {group_rows} rows, on core {given.core} alone, {given.rounds} rounds.\n\n"
        + table(["", "rows/s", "rows per CPU second", "bytes a row"], rows)
        + f"\n\nclipbatch against pyarrow with the same options: {wall.text(3)} of its rate by the clock, "
        f"{busy.text(3)} by CPU time, median (lowest-highest) of the rounds' ratios."
    )
    result = {"machine": on, "rows_per_s": {n: spread(f) for n, f in figures.items()}, "wall": wall, "cpu": busy}
    finish("Writing parts on one core", body, EXPECTED, result, given.report)


if __name__ == "__main__":
    sys.exit(main())
