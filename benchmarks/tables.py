"""What it costs that images lie in a table: the read stage alone over rows of Parquet, and over the bytes as files.

    python benchmarks/tables.py [--rows N] [--bytes N] [--latency S] [--rounds N] [--report PATH]

Rows hold random bytes, as nothing is decoded. In turns, images a second through our read stage in a `Flow` with the
threads that a run gives it, from

    files          the same bytes as files
    groups of 100  a table as Hugging Face's writers make them, row groups of 100, snappy
    one group      one row group for all
    bare pyarrow   `iter_batches` over groups of 100 in one thread, which makes no bytes of a row's own
    files, web     a web server of another process on this machine, each answer `--latency` seconds late
    table, web     groups of 100 from there, by ranges

and images per second of this process's own processor time beside it, which other work on the machine does not change.
A file is one stream that one thread decodes, so what it gives bounds a worker, whatever the number of its threads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import harness as timing
from clipbatch.config import ReadSettings, SourceSettings
from clipbatch.inputs import listing as listings
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.read import Read
from clipbatch.storage.uris import path_of
from clipbatch.types import Encoded, Item, ItemBatch, Span

BATCH = 32
THREADS = 8
"""Batches read at a time, as in a run on two cores."""
EXPECTED = (
    "10,000 images/s of 110 kB, which a GPU may ask of a worker, on a core of a server; from the web, the table no "
    "slower than the files."
)


class Far(asyncio.Protocol):
    """A connection to the server: GET /NAME gets the file, or the range that is asked for, late."""

    folder: Path
    latency_s: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        lines = data.decode().split("\r\n")
        path = self.folder / lines[0].split(" ")[1][1:]
        wanted = next((line for line in lines if line.lower().startswith("range:")), "")
        total = path.stat().st_size
        first, last = map(int, wanted.partition("=")[2].split("-")) if wanted else (0, total - 1)
        with path.open("rb") as file:
            file.seek(first)
            part = file.read(last + 1 - first)
        head = f"Content-Range: bytes {first}-{first + len(part) - 1}/{total}\r\n" if wanted else ""
        code = "206 Partial Content" if wanted else "200 OK"
        answer = f"HTTP/1.1 {code}\r\n{head}Content-Length: {len(part)}\r\n\r\n".encode() + part
        asyncio.get_running_loop().call_later(self.latency_s, self._transport.write, answer)


async def serve(folder: Path, latency_s: float) -> None:
    """Print the port, and answer until this process is ended."""
    Far.folder, Far.latency_s = folder, latency_s
    server = await asyncio.get_running_loop().create_server(Far, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def far(folder: Path, latency_s: float) -> Iterator[str]:
    """A running server; its url."""
    command = [sys.executable, __file__, "--latency", str(latency_s), "--serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def make(folder: Path, rows: int, size: int) -> None:
    """The files and the tables."""
    dice = np.random.default_rng(0)
    data = [dice.bytes(size) for _ in range(rows)]
    for number, image in enumerate(data):
        (folder / f"{number:06d}.jpg").write_bytes(image)
    table = pa.table({"image": pa.array(data, pa.binary()), "id": range(rows)})
    pq.write_table(table, folder / "groups.parquet", row_group_size=100)
    pq.write_table(table, folder / "one.parquet", row_group_size=rows)


def batches(*inputs: str) -> list[ItemBatch]:
    """The inputs as a run would cut them."""
    listing = listings.Listing(listings.listers(SourceSettings(inputs=inputs)), None, ())
    rows = pa.Table.from_batches(listing.batches()).to_pylist()
    items = [
        Item(row_id=at, uri=row["uri"], path=path_of(row["uri"], row["root"]))
        if row["span"] is None
        else Item(
            row_id=at,
            uri=row["uri"],
            path=path_of(row["span"]["container"], row["root"]),
            span=Span(**{name: row["span"][name] for name in ("start", "length", "method")}),
        )
        for at, row in enumerate(rows)
    ]
    none = pa.table({})
    return [
        ItemBatch(shard=0, start=at, items=tuple(items[at : at + BATCH]), rows=none, last=False)
        for at in range(0, len(items), BATCH)
    ]


def reading(work: Iterable[ItemBatch]) -> Callable[[], int]:
    """Reads all of `work` once; how many images there were."""

    def read() -> int:
        stage = Read(ReadSettings(), batches=THREADS)
        flow = Flow(work, [Stage(name="read", work=stage, threads=stage.batches)])
        return sum(isinstance(slot, Encoded) for batch in flow for slot in batch.slots)

    return read


def bare(path: Path) -> Callable[[], int]:
    def read() -> int:
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        return sum(len(batch) for batch in file.iter_batches(10, columns=["image"], use_threads=False))

    return read


def main() -> None:
    parser = timing.arguments("Measure what it costs that images lie in a table.")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=110_000, help="of an image (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="of each answer, seconds (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return asyncio.run(serve(args.serve, args.latency))
    on, per_cpu_s = timing.machine(), dict[str, list[float]]()
    with tempfile.TemporaryDirectory(prefix="clipbatch-tables-") as scratch, far(Path(scratch), args.latency) as url:
        folder = Path(scratch)
        make(folder, args.rows, args.bytes)
        urls = [f"{url}/{number:06d}.jpg" for number in range(args.rows)]
        work = {
            "files": reading(batches(f"{scratch}/*.jpg")),
            "groups of 100": reading(batches(f"{scratch}/groups.parquet")),
            "one group": reading(batches(f"{scratch}/one.parquet")),
            "bare pyarrow": bare(folder / "groups.parquet"),
            "files, web": reading(batches(*urls)),
            "table, web": reading(batches(f"{url}/groups.parquet")),
        }

        def timed(name: str, read: Callable[[], int]) -> Callable[[], float]:
            def once() -> float:
                begun, used = time.perf_counter(), time.process_time()
                if (done := read()) != args.rows:
                    raise SystemExit(f"{name}: {done} images of {args.rows}")
                per_cpu_s.setdefault(name, []).append(done / (time.process_time() - used))
                return done / (time.perf_counter() - begun)

            return once

        rates = timing.interleave({name: timed(name, read) for name, read in work.items()}, args.rounds)
    found: dict[str, Any] = {name: timing.spread(values) for name, values in rates.items()}
    own: dict[str, Any] = {name: timing.spread(values[1:]) for name, values in per_cpu_s.items()}
    body = [(name, found[name].text(), own[name].text()) for name in found]
    text = timing.table(("", "images/s, median (min-max)", "images/s of processor time"), body)
    intro = (
        f"{args.rows} images of {args.bytes / 1000:g} kB, {args.rounds} rounds, {args.latency * 1000:g} ms an answer."
    )
    result = {"machine": on, "rates": found, "per_cpu_s": own}
    timing.finish("Images in tables", f"{intro}\n\n{text}", EXPECTED, result, args.report)


if __name__ == "__main__":
    main()
