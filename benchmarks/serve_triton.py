"""Images/s through Triton, through `clipbatch serve` and of a run: the same photographs, model and stages.

    python benchmarks/serve_triton.py [FOLDER] [--model M [--pretrained F]] [--rounds N] [--clients N] [--report PATH]

On the CPU. Each server is there for all rounds, idle while another one works; wrk makes the load, as in `serve.py`.
Triton gets the files in its binary form, `serve` as bodies and forms. The server is that of the tests (.venv/triton),
whose Python backend has an older numpy and pyarrow than the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton

import harness
from clipbatch.config import models
from fixtures import about, photographs
from harness import Benchmark
from processes import children, cpu_s, run_clipbatch, scratch_folder
from serve import OPTIONS, Contest, prepare, serving, wrk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.triton import SERVER, TritonServer, triton_server

BATCH = 32


def as_triton(paths: Sequence[Path]) -> tuple[bytes, int]:
    """Body of a request with images, and the bytes of it that are its header."""
    images = np.array([[path.read_bytes()] for path in paths], dtype=np.object_)
    given = triton.InferInput("image", images.shape, "BYTES")
    given.set_data_from_numpy(images)
    outputs = [triton.InferRequestedOutput(name) for name in ("label", "score", "scores", "status", "error")]
    body, header_bytes = triton.InferenceServerClient.generate_request_body([given], outputs=outputs)
    return bytes(body), int(header_bytes)


def triton_load(
    server: TritonServer, photos: list[Path], scratch: Path, *, per_request: int, args: argparse.Namespace
) -> Callable[[], dict[str, float]]:
    """Images/s of all clients together, and the CPU time of the server and its Python backend."""
    images = cycle(photos)
    made = [as_triton(list(islice(images, per_request))) for _ in photos]
    bodies = [("application/octet-stream", body) for body, _ in made]
    prepared = prepare(Path(tempfile.mkdtemp(dir=scratch)), bodies, [header_bytes for _, header_bytes in made])
    pids = [server.process.pid, *children(server.process.pid)]

    def run() -> dict[str, float]:
        used_s = sum(map(cpu_s, pids))
        url = f"http://{server.address}/v2/models/clipbatch/infer"
        count, elapsed_s = wrk(url, prepared, clients=args.clients, seconds=args.seconds)
        used_s = sum(map(cpu_s, pids)) - used_s
        return {"images/s": count * per_request / elapsed_s, "CPU ms an image": used_s / (count * per_request) * 1000}

    return run


def measure(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All three in turns."""
    photos = photographs(args.folder)
    if not SERVER.is_dir():
        raise SystemExit(f"there is no Triton at {SERVER}: make setup puts it there")
    with scratch_folder() as scratch:
        pretrained = args.pretrained
        if pretrained == "random":
            from contestants import random_weights

            pretrained = random_weights(args.model, scratch)
        chosen = ["--model", args.model, *(["--pretrained", pretrained] if pretrained else [])]
        options = (*OPTIONS[:-2], *chosen, "--batch-size", str(BATCH))
        run_clipbatch("export", "triton", *options, "--out", scratch / "models")
        folder = Path(tempfile.mkdtemp(dir=scratch))
        with (
            triton_server(scratch / "models", folder) as server,
            serving(scratch, args.folder.resolve(), options) as service,
        ):
            contest = Contest(photos, scratch, service, options, args)
            contest.process()  # whose CPU time is that of a start, which is no part of a run's
            ways: dict[str, Callable[[], dict[str, float]]] = {"a run": contest.batch}
            for count in map(int, args.per_request.split(",")):
                ways[f"serve, {count} a request"] = contest.load(per_request=count, send=True)
                ways[f"Triton, {count} a request"] = triton_load(server, photos, scratch, per_request=count, args=args)
            figures = harness.take_turns(ways, args.rounds)
    rates = figures["images/s"]
    wanted = {f"{name} / a run": "" for name in rates if name != "a run"}
    for count in args.per_request.split(","):
        wanted[f"Triton, {count} a request / serve, {count} a request"] = ">= 0.9"
    shared, shares = harness.compare(rates, wanted)
    columns = {name: (values, digits) for (name, values), digits in zip(figures.items(), (0, 2), strict=True)}
    body = (
        f"{args.model}. {about(photos, args.rounds)}\n\n"
        f"A run of {args.images:,} images; {args.clients} clients, {args.seconds} s a round:\n\n"
        f"{harness.spread_table('throughput', columns)}\n\n{shared}"
    )
    return body, {"shares": shares} | {name: harness.spreads(values) for name, values in figures.items()}


BENCHMARK = Benchmark(
    title="Triton beside serve and a run",
    expected="at least 0.9 of what serve does, as both have the same stages and share batches among clients; a run's "
    "rate is the ceiling.",
    measure=measure,
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
    harness.run(__doc__ or "", {"serve_triton": BENCHMARK})
