"""What do finished shards cost a run that is started again? Measured on 100,000 real part files.

    python benchmarks/resume.py [--report FILE.md]

A run of 100,000 shards of one image each is planned, one part is made by clipbatch, and its bytes stand for all parts.
Measured, each as the whole command with the start of Python: `status`; `run` with nothing left to do, where the counts
of the parts are known from an earlier run, and where every footer has to be read; and `run` for one open shard.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from clipbatch.rundir.counts import CACHE
from clipbatch.rundir.layout import RunDir
from harness import arguments, finish, interleave, machine, spread, table

TARGETS = {"status": 2.0, "run, nothing to do": 5.0, "run, one shard open": 0.0, "run, all footers to be read": 0.0}
"""Seconds; 0 where nothing is promised."""


def clipbatch(*args: object) -> float:
    """Seconds that the command takes."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "clipbatch", *map(str, args)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def prepare(folder: Path, shards: int) -> RunDir:
    """A run of `shards` shards, all done."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "red.png")
    (folder / "list.txt").write_text("red.png\n" * shards)
    settings = ("--labels", "cifar10", "--model", "clipbatch-demo", "--batch-size", 1, "--shard-size", 1)
    clipbatch("plan", folder / "list.txt", *settings, "--out", folder / "out")
    clipbatch("run", "--out", folder / "out", "--shards", "0")
    run = RunDir(folder / "out")
    plan = run.plan()
    part = run.part(0, plan.shards).read_bytes()
    for shard in range(1, shards):
        Path(str(run.part(shard, plan.shards))).write_bytes(part)
    os.sync()
    return run


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    on = machine()
    folder = Path(tempfile.mkdtemp(prefix="clipbatch-resume-"))
    try:
        run = prepare(folder, options.shards)
        last = Path(str(run.part(options.shards - 1, options.shards)))

        def one_open() -> float:
            last.unlink()
            return clipbatch("run", "--out", run.path, "--quiet")

        def cold() -> float:
            (Path(str(run.path)) / CACHE).unlink(missing_ok=True)
            return clipbatch("run", "--out", run.path, "--quiet")

        clipbatch("run", "--out", run.path, "--quiet")
        figures = interleave(
            {
                "status": lambda: clipbatch("status", run.path),
                "run, nothing to do": lambda: clipbatch("run", "--out", run.path, "--quiet"),
                "run, one shard open": one_open,
                "run, all footers to be read": cold,
            },
            options.rounds,
        )
    finally:
        shutil.rmtree(folder)
    found = {name: spread(values) for name, values in figures.items()}
    rows = [
        [
            name,
            value.text(2),
            f"{1e3 * value.median / options.shards:.4f}",
            f"{TARGETS[name]:g}" if TARGETS[name] else "",
        ]
        for name, value in found.items()
    ]
    header = ("command", "seconds", "ms a shard", "at most, s")
    what = f"{options.shards} finished shards; median (lowest-highest) of {options.rounds} rounds."
    body = f"{what}\n\n{table(header, rows)}"
    expected = (
        "a finished shard costs far less than 20 ms to skip; a run of 100,000 resumes within 5 s, and status takes "
        "less than 2 s. One shard open includes loading the model. Footers are read only for parts that are new."
    )
    result: dict[str, Any] = {"machine": on, "shards": options.shards, **found}
    finish("Resuming a run of many finished shards", body, expected, result, options.report)


if __name__ == "__main__":
    main()
