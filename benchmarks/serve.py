"""What a model that stays loaded is worth: the time of a job of ten images, and throughput over HTTP.

    python benchmarks/serve.py [FOLDER] [--model M [--pretrained F]] [--rounds N] [--clients N] [--report PATH]

On the CPU, with the embedded model unless another is named; the service is a process of its own, and what asks it works
on the same cores.

    latency      ten photographs, in turns: a `clipbatch run` for them; a manifest dropped into the service's spool,
                 until its answer is there; their names sent to POST /classify, until they are answered. Of the two
                 services a round's figure is the median of REPEATS
    throughput   in turns: the images/s that the report of a `clipbatch run` states, without loading the model, and
                 those over HTTP, with names or files; and the CPU milliseconds an image of the run or of the service,
                 which feel other work on the machine less. wrk (https://github.com/wg/wrk) makes the load and takes
                 next to nothing of the cores: each of `--clients` connections sends the next request when the last
                 one is answered
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any

import urllib3

import harness
from clipbatch.config import models
from fixtures import about, list_names, photographs
from harness import Benchmark
from processes import Took, clipbatch_command, cpu_s, run_report, scratch_folder

JOB = 10
REPEATS = 10
OPTIONS = ("--labels", "cifar10", "--device", "cpu", "--model", models.DEMO)
_WRK = """
-- Requests that were prepared, sent in turns. The argument is a file with a line for each: its content type, the file
-- that holds its body, and the length of the header inside the body, which Triton asks for; between them tabs.
local requests, turn = {}, 0

function init(args)
   for line in io.lines(args[1]) do
      local kind, path, length = line:match("^([^\\t]+)\\t([^\\t]+)\\t(%d*)$")
      local file = assert(io.open(path, "rb"))
      local headers = {["Content-Type"] = kind}
      if length ~= "" then headers["Inference-Header-Content-Length"] = length end
      requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
      file:close()
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end
"""


class Service:
    """`clipbatch serve` in a process of its own."""

    def __init__(self, spool: Path, root: Path, options: Sequence[str]) -> None:
        command = clipbatch_command("serve", spool, *options, "--http", "0", "--root", root)
        self.spool = spool
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        said = self._process.stderr.readline()
        url = re.search(r"http://\S+:\d+", said)
        if not url:
            raise SystemExit(f"the service does not start: {said}{self._process.stderr.read()}")
        self.url, self.pid = url[0], self._process.pid
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

    def __init__(self, photos: list[Path], scratch: Path, service: Service, options: Sequence[str], args: Any) -> None:
        """options: of the service, and of a run."""
        self._photos, self._scratch, self._service, self._root = photos, scratch, service, args.folder.resolve()
        self._options, self._args, self._start_cpu_s = options, args, 0.0

    def _run(self, paths: list[Path], rows: int) -> tuple[Took, float]:
        """What a process takes, and the images/s of its report."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            listed = list_names(paths, rows, Path(folder, "list.txt"))
            report, took = run_report("run", listed, *self._options, "--out", f"{folder}/out")
            return took, float(report["this_run"]["images_per_s"])

    def process(self) -> float:
        """Seconds of a process for a job."""
        took, _ = self._run(self._photos[:JOB], JOB)
        self._start_cpu_s = took.cpu_s
        return took.wall_s

    def spool(self) -> float:
        """Seconds of a job in the spool."""
        return statistics.median(self._service.job(self._photos[:JOB]) for _ in range(REPEATS))

    def http(self) -> float:
        """Seconds of a request with a job's names."""
        client, request = Client(self._service.url), as_names(self._names(self._photos[:JOB]))
        once = harness.timed(lambda: client.rows(*request))
        return statistics.median(once() for _ in range(REPEATS))

    def batch(self) -> dict[str, float]:
        """Images/s of a run, without its start, and its CPU time an image."""
        images = self._args.images
        took, images_per_s = self._run(self._photos, images)
        used_s = took.cpu_s - self._start_cpu_s  # without what a process takes to start, as far as a job's images
        return {"images/s": images_per_s, "CPU ms an image": used_s / (images - JOB) * 1000}

    def load(self, *, per_request: int, send: bool) -> Callable[[], dict[str, float]]:
        """Images/s of all clients together. send: the files in place of their names."""
        images = cycle(self._photos)
        chunks = [list(islice(images, per_request)) for _ in self._photos]
        requests = [as_files(chunk) if send else as_names(self._names(chunk)) for chunk in chunks]
        prepared = prepare(Path(tempfile.mkdtemp(dir=self._scratch)), requests)

        def run() -> dict[str, float]:
            used_s = cpu_s(self._service.pid)
            url = f"{self._service.url}/classify"
            count, elapsed_s = wrk(url, prepared, clients=self._args.clients, seconds=self._args.seconds)
            images = count * per_request
            used_s = cpu_s(self._service.pid) - used_s
            Client(self._service.url).rows(*requests[0])  # in its turn behind those that wrk has left behind
            return {"images/s": images / elapsed_s, "CPU ms an image": used_s / images * 1000}

        return run

    def _names(self, paths: list[Path]) -> list[str]:
        return [str(path.relative_to(self._root)) for path in paths]


def prepare(folder: Path, requests: Iterable[tuple[str, bytes]], header_bytes: Iterable[int] = ()) -> Path:
    """Write requests, of content type and body, into `folder`; returns it. header_bytes: of each body, if it is one of
    Triton's binary requests."""
    lines = []
    for number, ((kind, body), length) in enumerate(zip_longest(requests, header_bytes, fillvalue="")):
        path = folder / str(number)
        path.write_bytes(body)
        lines.append(f"{kind}\t{path}\t{length}\n")
    (folder / "requests.tsv").write_text("".join(lines))
    (folder / "send.lua").write_text(_WRK)
    return folder


def wrk(url: str, prepared: Path, *, clients: int, seconds: int) -> tuple[int, float]:
    """Requests that were answered, and in how many seconds. Raises: RuntimeError where one was not, or not with 2xx."""
    command = ["wrk", "--threads", 1, "--connections", clients, "--duration", seconds, "--timeout", 60]
    command += ["--script", prepared / "send.lua", url, "--", prepared / "requests.tsv"]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("wrk makes the load over HTTP, and is not installed: apt-get install wrk") from None
    said = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
    if done.returncode or not said or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"wrk: {done.stdout}{done.stderr}")
    return int(said[1]), float(said[2]) / (1000 if said[3] == "ms" else 1)


@contextlib.contextmanager
def serving(scratch: Path, root: Path, options: Sequence[str] = OPTIONS) -> Iterator[Service]:
    service = Service(Path(tempfile.mkdtemp(dir=scratch)), root, options)
    try:
        yield service
    finally:
        service.end()


def serve(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Latency of a job, and throughput."""
    photos = photographs(args.folder)
    if len(photos) < JOB:
        raise SystemExit(f"{args.folder} holds {len(photos)} photographs: a job has {JOB}")
    with scratch_folder() as scratch:
        pretrained = args.pretrained
        if pretrained == "random":
            from contestants import random_weights

            pretrained = random_weights(args.model, scratch)
        chosen = ["--model", args.model, *(["--pretrained", pretrained] if pretrained else [])]
        options = (*OPTIONS[:-2], *chosen)
        with serving(scratch, args.folder.resolve(), options) as service:
            contest = Contest(photos, scratch, service, options, args)
            latency = {"a process": contest.process, "spool": contest.spool, "HTTP": contest.http}
            seconds = harness.interleave(latency, args.rounds)
            ways: dict[str, Callable[[], dict[str, float]]] = {"a run": contest.batch}
            for what, send in (("names", False), ("files", True)):
                for count in map(int, args.per_request.split(",")):
                    ways[f"HTTP, {count} {what} a request"] = contest.load(per_request=count, send=send)
            figures = harness.take_turns(ways, args.rounds)
    rates = figures["images/s"]
    gained, gains = harness.compare(seconds, {f"a process / {name}": ">= 50" for name in ("spool", "HTTP")})
    shared, shares = harness.compare(rates, {f"{name} / a run": ">= 0.8" for name in rates if name != "a run"})
    times_ms = {name: [1000 * value for value in values] for name, values in seconds.items()}
    columns = {name: (values, digits) for (name, values), digits in zip(figures.items(), (0, 2), strict=True)}
    body = (
        f"{args.model}. {about(photos, args.rounds)}\n\n"
        f"{harness.spread_table(f'a job of {JOB} images', {'ms': (times_ms, 1)})}\n\n{gained}\n\n"
        f"A run of {args.images:,} images; {args.clients} clients, {args.seconds} s a round:\n\n"
        f"{harness.spread_table('throughput', columns)}\n\n{shared}"
    )
    result = {"gains": gains, "shares": shares, "seconds": harness.spreads(seconds)}
    return body, result | {name: harness.spreads(values) for name, values in figures.items()}


BENCHMARK = Benchmark(
    title="What a model that stays loaded is worth",
    expected="a job of ten images at least 50 times as fast as a process for it, as the start of Python, torch and the "
    "model takes seconds; HTTP at least 0.8 of a run's images/s at 32 clients; a run's rate is the ceiling.",
    measure=serve,
    folder=True,
    options={
        "model": (models.DEMO, "to serve"),
        "pretrained": (str, "its weights, as for clipbatch run, or `random`"),
        "rounds": (3, "that count"),
        "clients": (32, "connections"),
        "seconds": (10, "of a round over HTTP"),
        "per_request": ("1,10", "images"),
        "images": (2048, "of a run"),
    },
)

if __name__ == "__main__":
    harness.run(__doc__ or "", {"serve": BENCHMARK})
