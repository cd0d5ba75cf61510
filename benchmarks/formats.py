"""What it costs that images do not lie as files on a disk: in archives, in tables, far away.

    python benchmarks/formats.py archives [FOLDER] [--photos N] [--small N] [--members N] [--files N] [--rounds N]
    python benchmarks/formats.py tables [--rows N] [--bytes N] [--latency S] [--rounds N]
    python benchmarks/formats.py remote [FOLDER] [--images N] [--latency S] [--rounds N]

The same bytes in each form, in turns, through the same two loops: `read`, the read stage alone in a `Flow` with the
threads that a run gives it, and `run`, a `Worker` over a planned run with the embedded model, from names to published
Parquet. Beside the rate stands the rate by this process's own processor time, which other work on the machine changes
less. All files are in the page cache: what is compared is the work, not the disk.

archives: photographs, and JPEGs of 64 pixels, as files of a folder, as a tar and as a zip (stored); then lists of tiny
    members, as plans make them, and a big folder that is listed in a process of its own, with its peak memory.
tables: rows of random bytes, which are not decoded: as files; in a table as Hugging Face's writers make them (row
    groups of 100, snappy); in one row group; by `iter_batches` alone in one thread; files and table from a web server.
    A table is one stream that one thread decodes, so what it gives bounds a worker, whatever the number of threads.
remote: photographs from the disk, and from a web server. The wait alone allows reads / latency (64 / 0.05 s = 1280
    images/s); one request after the other, without read-ahead, would get 1 / latency (20 images/s).

The web server is a process of its own on this machine, and shares its cores; each of its answers comes `--latency`
seconds late, as a store's does that is far away.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import harness
from clipbatch.config import SourceSettings
from clipbatch.inputs import listing
from clipbatch.stages.read.stage import REMOTE_READS
from fixtures import about, big_folder, list_names, pack, photographs, small_jpegs
from harness import Benchmark
from processes import in_own_process, run_command, scratch_folder

COLUMNS = {"per s": "images/s", "per CPU s": "images per CPU second"}


def turns(contestants: Mapping[str, Callable[[], int]], rounds: int, images: int) -> dict[str, harness.Figures]:
    """Rates of each contestant, which does `images` in a round."""
    return harness.take_turns({name: harness.counted(work, images) for name, work in contestants.items()}, rounds)


def tables_of(figures: Mapping[str, harness.Figures], pairs: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The rates and the ratios of `pairs`, by the clock and by CPU time, in words and as spreads."""
    rates = harness.spread_table("", {title: (figures[name], 0) for name, title in COLUMNS.items()})
    by_clock, ratios = harness.compare(figures["per s"], pairs)
    by_cpu, cpu_ratios = harness.compare(figures["per CPU s"], pairs)
    result = {name: harness.spreads(values) for name, values in figures.items()}
    text = f"{rates}\n\nBy the clock:\n\n{by_clock}\n\nBy CPU time:\n\n{by_cpu}"
    return text, {"rates": result, "ratios": ratios, "cpu_ratios": cpu_ratios}


def planned(name: str, given: object, scratch: Path) -> Any:
    """A run over one input, with its worker loaded. given: a path, or names for a list."""
    from contestants import Ours

    if isinstance(given, list):
        given = list_names(given, len(given), scratch / f"{name}.txt")
    return Ours({"inputs": [str(given)], "batch_size": 32}, scratch / f"{name}-scores")


# archives


def archives(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Archives beside folders."""
    paths, sections, result = photographs(args.folder), [], {}
    with scratch_folder() as scratch:
        kinds = {
            "photos": (args.photos, [path.read_bytes() for path in paths]),
            "small": (args.small, small_jpegs(256)),
        }
        for kind, (count, contents) in kinds.items():
            forms = pack(scratch, kind, islice(cycle(contents), count))
            runs = {form: planned(f"{kind}-{form}", path, scratch) for form, path in forms.items()}
            for what, wanted in (("read", ""), ("run", ">= 0.95")):
                figures = turns({form: getattr(run, what) for form, run in runs.items()}, args.rounds, count)
                text, facts = tables_of(figures, {"tar / folder": wanted, "zip / folder": wanted})
                sections.append(f"## {count} {kind}, {what}\n\n{text}")
                result[f"{kind} {what}"] = facts
        forms = pack(scratch, "tiny", islice(cycle([b"x" * 100]), args.members))
        listers: dict[str, Callable[[], int]] = {form: lambda p=path: listed(p) for form, path in forms.items()}
        figures = turns({**listers, "Python's tarfile": lambda: by_tarfile(forms["tar"])}, args.rounds, args.members)
        text, result["list"] = tables_of(
            figures, {"tar / folder": "", "zip / folder": "", "tar / Python's tarfile": ""}
        )
        sections.append(f"## {args.members} tiny members, listed\n\n{text}")
        big_folder(args.files, scratch / "big")
        output = run_command(in_own_process(list_folder, scratch / "big")).output
        names_per_s, peak_mib = map(float, output.split())
    result["big_folder"] = {"files": args.files, "names_per_s": names_per_s, "peak_mib": peak_mib}
    last = f"A folder of {args.files} names: {names_per_s:,.0f} names/s, {peak_mib:.0f} MiB more at the peak."
    return "\n\n".join([about(paths, args.rounds), *sections, last]), result


def listed(given: Path) -> int:
    """Rows that a plan lists."""
    listers = listing.listers(SourceSettings(inputs=(str(given),)))
    return sum(len(batch) for batch in listing.Listing(listers, None, ()).batches())


def by_tarfile(path: Path) -> int:
    """Members that Python's tarfile finds; its list of them is emptied on the way."""
    count = 0
    with tarfile.open(path, "r:") as archive:
        while archive.next():
            count, archive.members = count + 1, []  # type: ignore[attr-defined]
    return count


def list_folder(folder: str) -> None:
    """In a process of its own: print names/s of a listing, and how much the peak memory grew."""

    def peak_mib() -> float:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match
        return int(match[1]) / 1024

    before, begun = peak_mib(), time.perf_counter()
    rows = listed(Path(folder))
    print(rows / (time.perf_counter() - begun), peak_mib() - before)


# tables


def tables(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Images in tables beside files."""
    dice, count = np.random.default_rng(0), args.rows
    data = [dice.bytes(args.bytes) for _ in range(count)]
    with scratch_folder() as scratch, tempfile.TemporaryDirectory() as name, far(Path(name), args.latency) as url:
        folder = Path(name)
        paths = [folder / f"{number:06d}.jpg" for number in range(count)]
        for path, image in zip(paths, data, strict=True):
            path.write_bytes(image)
        table = pa.table({"image": pa.array(data, pa.binary()), "id": range(count)})
        pq.write_table(table, folder / "groups.parquet", row_group_size=100)
        pq.write_table(table, folder / "one.parquet", row_group_size=count)
        given = {
            "files": paths,
            "groups of 100": folder / "groups.parquet",
            "one group": folder / "one.parquet",
            "files, web": [f"{url}/{path.name}" for path in paths],
            "table, web": f"{url}/groups.parquet",
        }
        work = {what: planned(f"input-{n}", one, scratch).read for n, (what, one) in enumerate(given.items())}

        def bare() -> int:
            file = pq.ParquetFile(folder / "groups.parquet", buffer_size=2**20, pre_buffer=False)
            return sum(len(batch) for batch in file.iter_batches(10, columns=["image"], use_threads=False))

        figures = turns({**work, "bare pyarrow": bare}, args.rounds, count)
    wanted = {"groups of 100 / files": "", "groups of 100 / bare pyarrow": "", "table, web / files, web": ">= 1"}
    text, result = tables_of(figures, wanted)
    intro = f"{count} images of {args.bytes / 1000:g} kB, {args.rounds} rounds, {args.latency * 1000:g} ms an answer."
    return f"{intro}\n\n{text}", result


# remote


def remote(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Images from far away beside the disk."""
    photos = [path for path in photographs(args.folder) if path.parent == args.folder.resolve()]
    some = list(islice(cycle(photos), args.images))
    with scratch_folder() as scratch, far(args.folder.resolve(), args.latency) as url:
        disk = planned("disk", some, scratch)
        web = planned("web", [f"{url}/{path.name}" for path in some], scratch)
        work = {"read disk": disk.read, "read web": web.read, "run disk": disk.run, "run web": web.run}
        figures = turns(work, args.rounds, args.images)
    allowed = REMOTE_READS / args.latency
    text, result = tables_of(figures, {"run web / run disk": "", "read web / read disk": ""})
    share = harness.ratios(figures["per s"]["read web"], [allowed] * args.rounds)
    body = (
        f"{about(photos, args.rounds)} {args.images} in a round; each answer {args.latency * 1000:g} ms late.\n\n{text}"
        f"\n\n{REMOTE_READS} reads at a time allow {allowed:,.0f} images/s: reading reaches {share.text(2)} of that."
    )
    return body, {**result, "latency_s": args.latency, "read web / what the wait allows": share}


# the web server


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


def serve(folder: str, latency_s: str) -> None:
    """In a process of its own: print the port, and answer until the process is ended."""

    async def answer() -> None:
        Far.folder, Far.latency_s = Path(folder), float(latency_s)
        server = await asyncio.get_running_loop().create_server(Far, "127.0.0.1", 0, backlog=256)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(answer())


@contextlib.contextmanager
def far(folder: Path, latency_s: float) -> Iterator[str]:
    """A running server of the files in `folder`; its url."""
    with subprocess.Popen(in_own_process(serve, folder, latency_s), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


ROUNDS = {"rounds": (5, "that count")}
LATENCY = {"latency": (0.05, "of each answer, seconds")}
BENCHMARKS = {
    "archives": Benchmark(
        title="Archives beside folders",
        expected="tar / folder and zip / folder at least 0.95 in every run. Reading alone, a tar is at least as fast "
        "as a folder, since a member costs one read and a file also an opening; a zip is slower on large images, for "
        "its checksums.",
        measure=archives,
        folder=True,
        options={
            "photos": (1024, "photographs in a round"),
            "small": (16384, "small images in a round"),
            "members": (100_000, "members to list"),
            "files": (1_000_000, "names of the big folder"),
            **ROUNDS,
        },
    ),
    "tables": Benchmark(
        title="Images in tables",
        expected="10,000 images/s of 110 kB, which a GPU may ask of a worker, on a core of a server; from the web, the "
        "table no slower than the files. Bare pyarrow, which makes no bytes of a row's own, is the ceiling.",
        measure=tables,
        options={"rows": (2000, "of the table"), "bytes": (110_000, "of an image"), **LATENCY, **ROUNDS},
    ),
    "remote": Benchmark(
        title="Images from far away",
        expected="at least 300 images/s through the read stage at 50 ms a request; a run over the web no slower than "
        "the lesser of that and a run from the disk, but for what the server takes of the cores.",
        measure=remote,
        folder=True,
        options={"images": (2048, "in a round of each"), **LATENCY, **ROUNDS},
    ),
}

if __name__ == "__main__":
    harness.run(__doc__ or "", BENCHMARKS)
