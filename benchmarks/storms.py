"""Does a run over a store or the web lose rows to trouble that passes, or publish rows that trouble has spoiled?

    python benchmarks/storms.py [--rows 2300] [--storm 60] [--silence 6] [--read-timeout 60] [--report FILE.md]

A run with default options and the embedded model (`--read-timeout` makes small trials short) reads `--rows` photographs
from an S3 server and from a web server, each behind a proxy that fails (tests/support/proxy.py).

Trouble that passes: 30% of all requests get a 503; the server drops all connections, or holds them without a word, for
`--silence` seconds; it says SlowDown to everything for `--storm` seconds. Every row has to be ok then. Trouble that
does not pass: from the middle on, the token has expired, or the server is gone. Then the run has to stop with exit
code 75 and no spoiled row, and the same command has to finish it when the trouble is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import harness

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.proxy import Fault, FaultProxy, Proxied, at_random, fault_proxy, for_a_while, from_then_on
from tests.support.servers import body, buckets, web

DEMO = ("--labels", "cifar10", "--model", "clipbatch-demo", "--json", "--quiet")
EXPECTED = "every row ok after what passes; exit code 75, no bad row and then every row ok after what does not."


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server behind a proxy, and how a run names its images."""

    proxy: FaultProxy
    source: str
    environment: dict[str, str]
    is_s3: bool
    read_timeout: float

    def refuse(self, code: int, error: str) -> Fault:
        return lambda request: request.refuse(code, error if self.is_s3 else "")


def hang_up(request: Proxied) -> bool:
    return request.hang_up()


def hold(request: Proxied) -> bool:
    """Say nothing until the client hangs up, or for a minute."""
    request.connection.settimeout(60)
    with contextlib.suppress(OSError):
        request.connection.recv(1)
    return request.hang_up()


@contextlib.contextmanager
def servers(rows: int, read_timeout: float, scratch: Path) -> Iterator[list[Server]]:
    """Both servers, with `rows` images each."""
    files = [path.read_bytes() for path in sorted(harness.PHOTOS.glob("*.jpg"))[:32]]
    names = [f"{number:05d}.jpg" for number in range(rows)]
    with buckets() as store, web() as server, fault_proxy(store.endpoint) as far, fault_proxy(server.root) as near:
        store.put("storms")
        for number, name in enumerate(names):
            store.put(f"storms/{name}", files[number % len(files)])
            server.answers[f"/{name}"] = body(files[number % len(files)])
        listed = scratch / "list.txt"
        listed.write_text("".join(f"{near.root}/{name}\n" for name in names))
        environment = store.env | {"AWS_ENDPOINT_URL": far.root}
        yield [
            Server(proxy=far, source="s3://storms/", environment=environment, is_s3=True, read_timeout=read_timeout),
            Server(proxy=near, source=str(listed), environment={}, is_s3=False, read_timeout=read_timeout),
        ]


def run(server: Server, out: Path) -> tuple[int, dict[str, Any], str, float]:
    """Exit code, report, what was said, and seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "clipbatch", "run", server.source, *DEMO, "--out", str(out)]
    command += ["--read-timeout", str(server.read_timeout)]
    done = subprocess.run(command, env=os.environ | server.environment, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr.strip(), time.perf_counter() - begun


def bad_rows(out: Path) -> int:
    """Published rows that are not ok."""
    parts = (out / "parts").glob("part-*.parquet")
    tables = (pq.ParquetFile(part).read(columns=["status"]) for part in parts)
    return sum(status != "ok" for table in tables for status in table["status"].to_pylist())


def passing(server: Server, fault: Fault, rows: int, out: Path) -> dict[str, Any]:
    """A run through trouble that passes."""
    server.proxy.fault, before = fault, server.proxy.faults
    code, report, said, seconds = run(server, out)
    waits = next(iter(report.get("this_run", {}).get("waits", {}).values()), {})
    return {
        "exit code": code,
        "ok": report.get("status", {}).get("ok", 0),
        "faults": server.proxy.faults - before,
        "tried again": waits.get("tries_again", 0),
        "waited, s": waits.get("waited_s", 0.0),
        "seconds": seconds,
        "wrong": code != 0 or report.get("status") != {"ok": rows},
        "said": said,
    }


def lasting(server: Server, fault: Fault, rows: int, out: Path) -> dict[str, Any]:
    """A run into trouble that does not pass, and again after it."""
    server.proxy.fault, before = fault, server.proxy.faults
    code, _, said, seconds = run(server, out)
    faults, spoiled = server.proxy.faults - before, bad_rows(out)
    server.proxy.fault = lambda request: False
    again, report, _, _ = run(server, out)
    return {
        "exit code": code,
        "ok": report.get("status", {}).get("ok", 0),
        "faults": faults,
        "spoiled": spoiled,
        "seconds": seconds,
        "wrong": code != 75 or spoiled or again != 0 or report.get("status") != {"ok": rows},
        "said": said,
    }


Trial = Callable[[Server, Fault, int, Path], dict[str, Any]]


def trials(server: Server, rows: int, storm_s: float, silence_s: float) -> dict[str, tuple[Trial, Fault]]:
    """What is tried, by name."""
    requests = rows * (2 if server.is_s3 else 1)
    expired = server.refuse(400, "ExpiredToken") if server.is_s3 else server.refuse(403, "")
    early, middle = requests // 4, requests // 2
    return {
        "30% get 503": (passing, at_random(0.3, 503, "SlowDown" if server.is_s3 else "")),
        f"{silence_s:g} s without connections": (passing, for_a_while(silence_s, hang_up, after=early)),
        f"{silence_s:g} s without a word": (passing, for_a_while(silence_s, hold, after=early)),
        f"{storm_s:g} s of SlowDown": (passing, for_a_while(storm_s, server.refuse(503, "SlowDown"), after=early)),
        "the token expires": (lasting, from_then_on(middle, expired)),
        "the server is gone": (lasting, from_then_on(middle, hang_up)),
    }


def main() -> None:
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=2300, help="images of each run")
    parser.add_argument("--storm", type=float, default=60.0, help="seconds of SlowDown")
    parser.add_argument("--silence", type=float, default=6.0, help="seconds without an answer")
    parser.add_argument("--read-timeout", type=float, default=60.0, help="of the runs, in seconds")
    args = parser.parse_args()
    on, table, told = harness.machine(), [], []
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, servers(args.rows, args.read_timeout, Path(scratch)) as both:
        for server in both:
            place = "S3" if server.is_s3 else "web"
            for name, (trial, fault) in trials(server, args.rows, args.storm, args.silence).items():
                found = trial(server, fault, args.rows, Path(scratch) / f"{place} {name}")
                wrong += bool(found["wrong"])
                columns = ("exit code", "faults", "tried again", "waited, s", "spoiled", "ok", "seconds")
                shown = [found.get(column, "") for column in columns]
                cells = [f"{cell:,.0f}" if isinstance(cell, (int, float)) else cell for cell in shown]
                table.append([place, name, *cells])
                if found["said"]:
                    told.append(f"- {place}, {name}: {found['said'].splitlines()[-1]}")
                print(table[-1], found["said"], file=sys.stderr, flush=True)
    head = [
        "",
        "trouble",
        "exit code",
        "faults",
        "tried again",
        "waited, s",
        "bad rows published",
        "ok in the end",
        "s",
    ]
    lines = [" | ".join(row) for row in [head, ["---", "---", *["---:"] * 7], *table]]
    text = "\n".join(f"| {line} |" for line in lines)
    text += f"\n\n{args.rows:,} rows each. Trials that went wrong: {wrong} of {len(table)}.\n\nWhat was said:\n\n"
    result = {"benchmark": "storms", "machine": on, "rows": args.rows, "trials": len(table), "wrong": wrong}
    harness.finish("Trouble of stores and web servers", text + "\n".join(told), EXPECTED, result, args.report)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
