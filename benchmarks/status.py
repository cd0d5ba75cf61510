"""How long `clipbatch status` takes on a run of many finished parts, on a disk and in a store.

The run has one row a shard, and all of its parts are copies of one. `first`: nobody has counted the rows of any part,
so that status reads as many footers as it has time for, and keeps their counts. `all counted`: their counts are kept,
as they are after a run's report. The store is a server on this machine (`store_server.py`) that waits before each
answer, as if it were far away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import processes
import store_server
from clipbatch.config import models
from clipbatch.rundir.counts import CACHE, count_statuses, listing
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import seal
from fixtures import draw_pool, list_names
from harness import Benchmark

_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
_AT_MOST_S = {"disk": 3, "store": 15}


def measure(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    with processes.scratch_folder() as scratch:
        out, bucket = scratch / "out", scratch / "bucket"
        make_run(args.parts, scratch, out)
        shutil.copytree(out, bucket / "out", copy_function=os.link)
        (bucket / "out" / CACHE).unlink(missing_ok=True)  # the names are links to the same files, but for this one
        with serve(bucket, args.delay) as port:
            return compare(args, {"disk": str(out), "store": "s3://bucket/out"}, port)


def compare(args: argparse.Namespace, places: dict[str, str], port: int) -> tuple[str, dict[str, Any]]:
    """Measure the status of the run in both `places`. port: of the store."""
    os.environ.update(_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    kept = {place: counts_of_all(RunDir(path)) for place, path in places.items()}

    def status(place: str, *, first: bool) -> float:
        cache = RunDir(places[place]).path / CACHE
        if first:
            cache.unlink(missing_ok=True)
        else:
            cache.write_bytes(kept[place])
        took = processes.run_clipbatch("status", places[place], "--json")
        found = json.loads(took.output)
        if found["parts_done"] != args.parts or (not first and found["parts_counted"] != args.parts):
            raise SystemExit(f"{place}: {found}")
        return took.wall_s

    seconds = harness.interleave(
        {
            f"{place}, {'first' if first else 'all counted'}": lambda p=place, f=first: status(p, first=f)
            for place in places
            for first in (True, False)
        },
        args.rounds,
    )
    rows = [
        [name, value.text(2), str(_AT_MOST_S[name.partition(",")[0]])]
        for name, value in harness.spreads(seconds).items()
    ]
    body = f"{args.parts} parts, {args.rounds} rounds; median (min-max). The store waits {args.delay} s before each "
    body += "answer.\n\n"
    body += harness.table(("status of a run", "seconds", "at most, s, for 100,000"), rows)
    return body, {"parts": args.parts, "seconds": harness.spreads(seconds)}


def make_run(parts: int, scratch: Path, out: Path) -> None:
    """A finished run of `parts` parts of one row."""
    draw_pool(scratch / "pool")
    listed = list_names([scratch / "pool" / "0000.jpg"], parts, scratch / "list.txt")
    demo = ("--labels", "cifar10", "--model", models.DEMO, "--device", "cpu")
    processes.run_clipbatch("plan", listed, *demo, "--batch-size", 1, "--shard-size", 1, "--out", out)
    processes.run_clipbatch("run", "--out", out, "--shards", "0", "--quiet")
    run = RunDir(out)
    part = Path(str(run.part(0, parts))).read_bytes()
    for shard in range(1, parts):
        Path(str(run.part(shard, parts))).write_bytes(part)
    os.sync()


@contextlib.contextmanager
def serve(bucket: Path, delay_s: float) -> Iterator[int]:
    """The port of a store with the contents of `bucket`."""
    command = processes.in_own_process(store_server.serve, bucket, delay_s)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def counts_of_all(run: RunDir) -> bytes:
    """The file of counts that a run keeps when it has counted all of its parts, which are copies of the first."""
    plan, listed = run.plan(), listing(run)
    counts = count_statuses(run, plan, [0])[0]
    return seal(json.dumps({name: [facts, counts] for name, facts in listed.items()}).encode())


BENCHMARK = Benchmark(
    title="The status of a run of many parts",
    expected="a run of 100,000 parts is answered within 3 s on a disk and 15 s in a store, whether its rows have been "
    "counted before or not.",
    measure=measure,
    options={
        "parts": (100_000, "of the run"),
        "delay": (0.05, "s before each answer of the store"),
        "rounds": (3, "that count"),
    },
)

if __name__ == "__main__":
    harness.run(__doc__ or "", {"status": BENCHMARK})
