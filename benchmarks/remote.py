"""What distance costs: the same photographs from the disk, and from a web server that answers after a while.

    python benchmarks/remote.py [FOLDER] [--latency S] [--images N] [--rounds N] [--report PATH]

The server runs in a process of its own on this machine, holds the photographs in memory and lets each answer wait for
`--latency` seconds, as a store far away does. In turns, images a second, the embedded model, default settings:

    read disk   our read stage alone, in a `Flow`, with the threads that a run gives it
    read web    the same from the server
    run disk    the product: a `Worker` over a planned run, the model loaded before the clock starts
    run web     the same from the server

The wait alone allows reads / latency (64 / 0.05 s = 1280 images/s); the server and what it sends share the cores with
us. One thread after the other, as without read-ahead, would get 1 / latency (20 images/s).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import clipbatch
import harness as timing
from clipbatch.config import from_flat, models
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan as planner
from clipbatch.stages.flow import Flow
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import Task, Worker, item_batches
from clipbatch.stages.read.stage import REMOTE_READS
from clipbatch.types import Encoded

DEMO_IMAGES = Path(clipbatch.__file__).parent / "demo" / "images"
SHARED_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
EXPECTED = (
    "at least 300 images/s through the read stage at 50 ms a request; a run over the web no slower than the lesser of "
    "that and a run from the disk, but for what the server takes of the cores."
)


class Far(asyncio.Protocol):
    """A connection to the server: GET /N gets photograph N, late."""

    photos: list[bytes]
    latency_s: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        photo = self.photos[int(data.split(b" ", 2)[1][1:].removesuffix(b".jpg"))]
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(photo)
        asyncio.get_running_loop().call_later(self.latency_s, self._transport.write, head + photo)


async def serve(folder: Path, latency_s: float) -> None:
    """Print the port, and answer until this process is ended."""
    Far.photos, Far.latency_s = [path.read_bytes() for path in photographs(folder)], latency_s
    server = await asyncio.get_running_loop().create_server(Far, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def photographs(folder: Path) -> list[Path]:
    """The JPEGs in `folder`, by name."""
    found = sorted(folder.glob("*.jpg"))
    if not found:
        raise SystemExit(f"{folder} holds no .jpg files")
    return found


@contextlib.contextmanager
def far(folder: Path, latency_s: float) -> Iterator[str]:
    """A running server; its url."""
    command = [sys.executable, __file__, str(folder), "--latency", str(latency_s), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class Contestant:
    """A planned run over `names`."""

    def __init__(self, names: list[str], folder: Path) -> None:
        """folder: to be made."""
        folder.mkdir()
        (folder / "list.txt").write_text("\n".join(names))
        given = {"inputs": [str(folder / "list.txt")], "labels": "cifar10", "model": models.DEMO, "device": "cpu"}
        plan = planner.plan(from_flat(given), folder / "run")
        run, journal = RunDir(folder / "run"), Journal()
        self._worker = Worker(run, plan.fingerprint, "cpu", {}, journal)
        self._tasks = [Task(shard=shard) for shard in range(plan.shards)]
        manifest = Manifest(run, plan)
        self._batches = [batch for task in self._tasks for batch in item_batches(plan, manifest, task)]

    def read(self) -> float:
        """Images/s from names to bytes."""
        begun = time.perf_counter()
        flow = Flow(self._batches, self._worker.stages[:1])
        done = sum(isinstance(slot, Encoded) for batch in flow for slot in batch.slots)
        return done / (time.perf_counter() - begun)

    def run(self) -> float:
        """Images/s from names to published Parquet."""
        begun = time.perf_counter()
        done = sum(written.rows - written.bad for written in self._worker.label(self._tasks))
        return done / (time.perf_counter() - begun)


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Images/s of every contestant, a round each."""
    paths = photographs(args.folder)
    with tempfile.TemporaryDirectory(prefix="clipbatch-remote-") as scratch, far(args.folder, args.latency) as url:
        numbers = list(islice(cycle(range(len(paths))), args.images))
        disk = Contestant([str(paths[n].resolve()) for n in numbers], Path(scratch) / "disk")
        web = Contestant([f"{url}/{n}.jpg" for n in numbers], Path(scratch) / "web")
        work = {"read disk": disk.read, "read web": web.read, "run disk": disk.run, "run web": web.run}
        return timing.interleave(work, args.rounds)


def main() -> None:
    parser = timing.arguments("Measure what the wait for a remote store costs.")
    default = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="of photographs (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="of each answer, seconds (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2048, help="in a round of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return asyncio.run(serve(args.folder, args.latency))
    on, rates = timing.machine(), measure(args)
    found: dict[str, Any] = {name: timing.spread(values) for name, values in rates.items()}
    allowed = REMOTE_READS / args.latency
    compared = {
        "run web / run disk": timing.ratios(rates["run web"], rates["run disk"]),
        "read web / what the wait allows": timing.ratios(rates["read web"], [allowed] * args.rounds),
    }
    measured = timing.table(("", "images/s, median (min-max)"), [(name, rate.text()) for name, rate in found.items()])
    ratios = timing.table(("ratio within a round", "median (min-max)"), [(n, r.text(2)) for n, r in compared.items()])
    size = sum(path.stat().st_size for path in photographs(args.folder)) / len(photographs(args.folder)) / 1000
    intro = (
        f"{args.images} images a round, {size:.0f} kB on average, {args.rounds} rounds; each answer of the server "
        f"{args.latency * 1000:g} ms late, {REMOTE_READS} reads at a time, which allows {allowed:.0f} images/s."
    )
    result = {"machine": on, "latency_s": args.latency, "rates": found, "ratios": compared}
    timing.finish("Images from far away", f"{intro}\n\n{measured}\n\n{ratios}", EXPECTED, result, args.report)


if __name__ == "__main__":
    main()
