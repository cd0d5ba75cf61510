"""What a model that stays loaded is worth: the time of a job of ten images, and throughput over HTTP.

    python benchmarks/serve.py [FOLDER] [--model M [--pretrained F]] [--rounds N] [--clients N] [--report PATH]

On the CPU, with the embedded model unless another is named; the service is a process of its own, and what asks it works
on the same cores.

    latency      ten photographs, in turns: a `clipbatch run` for them; a manifest dropped into the service's spool,
                 until its answer is there; their names sent to POST /classify, until they are answered. Of the two
                 services a round's figure is the median of REPEATS
    throughput   in turns: the images/s that the report of a `clipbatch run` states, without loading the model, and
                 those over HTTP, where wrk keeps `--clients` connections busy with names or files; and the CPU
                 milliseconds an image of the run or of the service, which feel other work on the machine less
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import urllib3

import harness as timing
from clipbatch.config import models
from contestants import DEMO_IMAGES, SHARED_PHOTOS, photographs, random_weights
from load import load, prepare
from overheads import cpu_s

JOB = 10
REPEATS = 10
OPTIONS = ("--labels", "cifar10", "--device", "cpu", "--model", models.DEMO)
EXPECTED = (
    "a job of ten images at least 50 times as fast as a process for it, as the start of Python, torch and the model "
    "takes seconds; HTTP at least 0.8 of a run's images/s at 32 clients."
)


class Service:
    """`clipbatch serve` in a process of its own."""

    def __init__(self, spool: Path, root: Path, options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "clipbatch", "serve", str(spool), *options, "--http", "0", "--root", str(root)]
        self.spool = spool
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        said = self._process.stderr.readline()
        found = re.search(r"http://\S+:\d+", said)
        if not found:
            raise SystemExit(f"the service does not start: {said}{self._process.stderr.read()}")
        self.url, self.pid = found[0], self._process.pid
        self._jobs = 0

    def job(self, paths: list[Path]) -> float:
        """Seconds from dropping a manifest to its answer."""
        self._jobs += 1
        name = f"job-{self._jobs}.txt"
        hidden, answer = self.spool / f".{name}", self.spool / "done" / f"{name}.json"
        hidden.write_text("".join(f"{path}\n" for path in paths))
        begun = time.perf_counter()
        os.rename(hidden, self.spool / "in" / name)
        while not answer.exists():
            time.sleep(0.001)
        elapsed_s = time.perf_counter() - begun
        if json.loads(answer.read_text())["status"] != {"ok": len(paths)}:
            raise SystemExit(f"{name} has bad images")
        return elapsed_s

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(timeout=120):
            raise SystemExit(f"the service ended with {self._process.returncode}")


def as_names(names: list[str]) -> tuple[str, bytes]:
    """Content type and body of a request for images below the root."""
    return "application/json", json.dumps({"paths": names}).encode()


def as_files(paths: list[Path]) -> tuple[str, bytes]:
    """Content type and body of a request with images."""
    if len(paths) == 1:
        return "image/jpeg", paths[0].read_bytes()
    body, kind = urllib3.encode_multipart_formdata(
        [("image", (path.name, path.read_bytes(), "image/jpeg")) for path in paths]
    )
    return kind, body


class Client:
    """One connection that is kept, as a client in a loop has it."""

    def __init__(self, url: str) -> None:
        self._pool, self._url = urllib3.PoolManager(), f"{url}/classify"

    def rows(self, kind: str, body: bytes) -> list[dict[str, Any]]:
        """The answer to a request."""
        answer = self._pool.request("POST", self._url, body=body, headers={"content-type": kind}, retries=False)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.data[:200]!r}")
        rows: list[dict[str, Any]] = answer.json()["rows"]
        return rows


class Contest:
    """All contestants over the same photographs."""

    def __init__(
        self, photos: list[Path], scratch: Path, service: Service, options: Sequence[str], args: argparse.Namespace
    ) -> None:
        """options: of the service, and of a run."""
        self._photos, self._scratch, self._service, self._root = photos, scratch, service, args.folder.resolve()
        self._options, self._clients, self._images, self._seconds = options, args.clients, args.images, args.seconds
        self._used_s = self._start_cpu_s = 0.0
        self.cpu_ms: dict[str, list[float]] = {}
        """CPU milliseconds an image, the clients' not counted, by contestant, the warm-up's first."""

    def _run(self, paths: list[Path]) -> tuple[float, dict[str, Any]]:
        """Seconds of a process, and its report."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            listing = Path(folder, "list.txt")
            listing.write_text("".join(f"{path}\n" for path in paths))
            command = [sys.executable, "-m", "clipbatch", "run", str(listing), *self._options, "--json", "--quiet"]
            begun, used = time.perf_counter(), _children_cpu_s()
            made = subprocess.run([*command, "--out", f"{folder}/out"], check=True, capture_output=True, text=True)
            self._used_s = _children_cpu_s() - used
            return time.perf_counter() - begun, json.loads(made.stdout)

    def process(self) -> float:
        """Seconds of a process for a job."""
        elapsed_s = self._run(self._photos[:JOB])[0]
        self._start_cpu_s = self._used_s
        return elapsed_s

    def spool(self) -> float:
        """Seconds of a job in the spool."""
        return statistics.median(self._service.job(self._photos[:JOB]) for _ in range(REPEATS))

    def http(self) -> float:
        """Seconds of a request with a job's names."""
        client = Client(self._service.url)
        request = as_names(self._names(self._photos[:JOB]))

        def once() -> float:
            begun = time.perf_counter()
            client.rows(*request)
            return time.perf_counter() - begun

        return statistics.median(once() for _ in range(REPEATS))

    def batch(self) -> float:
        """Images/s of a run, without its start."""
        report = self._run(list(islice(cycle(self._photos), self._images)))[1]
        used_s = self._used_s - self._start_cpu_s  # without what a process takes to start, as far as a job's images
        self.cpu_ms.setdefault("a run", []).append(used_s / (self._images - JOB) * 1000)
        return float(report["this_run"]["images_per_s"])

    def load(self, name: str, *, per_request: int, send: bool) -> Callable[[], float]:
        """Images/s of all clients together. send: the files in place of their names."""
        images = cycle(self._photos)
        chunks = [list(islice(images, per_request)) for _ in self._photos]
        requests = [as_files(chunk) if send else as_names(self._names(chunk)) for chunk in chunks]
        listing = prepare(Path(tempfile.mkdtemp(dir=self._scratch), "requests"), requests)

        def run() -> float:
            used = cpu_s(self._service.pid)
            done, elapsed_s = load(
                f"{self._service.url}/classify", listing, clients=self._clients, seconds=self._seconds
            )
            used_s = cpu_s(self._service.pid) - used
            Client(self._service.url).rows(*requests[0])  # in its turn behind those that wrk has left behind
            self.cpu_ms.setdefault(name, []).append(used_s / (done * per_request) * 1000)
            return done * per_request / elapsed_s

        return run

    def _names(self, paths: list[Path]) -> list[str]:
        return [str(path.relative_to(self._root)) for path in paths]


def _children_cpu_s() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def serving(scratch: Path, root: Path, options: Sequence[str] = OPTIONS) -> Iterator[Service]:
    service = Service(Path(tempfile.mkdtemp(dir=scratch)), root, options)
    try:
        yield service
    finally:
        service.end()


def main() -> None:
    parser = timing.arguments("Measure what a model that stays loaded is worth.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
    )
    parser.add_argument("--model", default=models.DEMO)
    parser.add_argument("--pretrained", help="its weights, as for clipbatch run, or `random`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=10, help="of a round over HTTP (default: %(default)s)")
    parser.add_argument("--per-request", type=int, nargs="+", default=(1, 10), help="images (default: 1 and 10)")
    parser.add_argument("--images", type=int, default=2048, help="of a run (default: %(default)s)")
    args = parser.parse_args()
    on, photos = timing.machine(), photographs(args.folder)
    with tempfile.TemporaryDirectory(prefix="clipbatch-serve-") as folder:
        scratch, options = Path(folder), [*OPTIONS, "--model", args.model]
        weights = str(random_weights(args.model, scratch)) if args.pretrained == "random" else args.pretrained
        if weights:
            options += ["--pretrained", weights]
        with serving(scratch, args.folder.resolve(), options) as service:
            contest = Contest(photos, scratch, service, options, args)
            seconds = timing.interleave(
                {"a process": contest.process, "spool": contest.spool, "HTTP": contest.http}, args.rounds
            )
            ways: dict[str, Callable[[], float]] = {"a run": contest.batch}
            for count in args.per_request:
                for send, what in ((False, "name(s)"), (True, "file(s)")):
                    name = f"HTTP, {count} {what} a request"
                    ways[name] = contest.load(name, per_request=count, send=send)
            rates = timing.interleave(ways, args.rounds)
    gains = {name: timing.ratios(seconds["a process"], seconds[name]) for name in ("spool", "HTTP")}
    shares = {name: timing.ratios(rates[name], rates["a run"]) for name in rates if name != "a run"}
    cpu = {name: timing.spread(values[1:]) for name, values in contest.cpu_ms.items()}
    latency = [
        (name, timing.spread([value * 1000 for value in values]).text(1), gains[name].text(0) if name in gains else "")
        for name, values in seconds.items()
    ]
    throughput = [
        (name, timing.spread(values).text(0), shares[name].text(2) if name in shares else "", cpu[name].text(2))
        for name, values in rates.items()
    ]
    body = (
        f"{args.model}, {len(photos)} photographs, {args.rounds} rounds; median (min-max).\n\n"
        f"{timing.table((f'a job of {JOB} images', 'ms', 'a process / this, wanted >= 50'), latency)}\n\n"
        f"A run of {args.images:,} images; {args.clients} clients, {args.seconds} s a round:\n\n"
        f"{timing.table(('throughput', 'images/s', 'this / a run, wanted >= 0.8', 'CPU ms an image'), throughput)}"
    )
    result: dict[str, Any] = {"machine": on, "gains": gains, "shares": shares}
    result |= {"seconds": {name: timing.spread(values) for name, values in seconds.items()}}
    result |= {"images_per_s": {name: timing.spread(values) for name, values in rates.items()}, "cpu_ms": cpu}
    timing.finish("What a model that stays loaded is worth", body, EXPECTED, result, args.report)


if __name__ == "__main__":
    main()
