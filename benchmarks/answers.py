"""Whether each of ten thousand requests over HTTP is answered, and rightly, while some clients hang up.

    python benchmarks/answers.py [--requests N] [--clients N] [--report PATH]

The embedded model on the CPU and the sample images. `clipbatch serve` is a process of its own; the clients are threads
of this one, each with a connection that it keeps, and with one request after the other, for one to four images drawn at
random. One in ten hangs up, in the middle of its request or before the answer. Every answer is compared with what the
engine says about these images alone: right, wrong (another image's, or none's), or lost.
"""

from __future__ import annotations

import json
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

import timing
from clipbatch import Classifier
from contestants import DEMO_IMAGES
from serve import Client, Service, as_names, serving

CLOSE = 1e-3
"""Between scores of batches of other sizes, in bf16."""
EXPECTED = "none wrong, none lost: a batch's rows go back to those who sent them, by place and not by name."


def hang_up(url: str, body: bytes, send: int) -> None:
    """Send some of a request, and go."""
    where = urlsplit(url)
    head = (
        f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((where.hostname or "", where.port or 0)) as sock:
        sock.sendall(head.encode() + body[:send])


def at_once(clients: int, work: Callable[[int], None]) -> None:
    """Call `work` with the number of each client, in a thread each; raises what the first of them raised."""
    failed = list[BaseException]()

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def answers(service: Service, images: list[Path], requests: int, clients: int) -> dict[str, int]:
    """How many requests were answered rightly, wrongly and not at all, and how many clients hung up."""
    with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu") as classifier:
        names = [path.name for path in images]
        expected = dict(zip(names, classifier.classify(images).to_pylist(), strict=True))
    found, counting = {"right": 0, "wrong": 0, "lost": 0, "hung up": 0}, threading.Lock()

    def is_right(row: dict[str, Any], name: str) -> bool:
        theirs = expected[name]
        if any(row[key] != theirs[key] for key in ("status", "label", "width", "height")) or row["uri"] != name:
            return False
        ours, wanted = row["scores"] or [], theirs["scores"] or []
        return len(ours) == len(wanted) and all(abs(a - b) < CLOSE for a, b in zip(ours, wanted, strict=True))

    def client(number: int) -> None:
        rng, one = random.Random(number), Client(service.url)
        for _ in range(-(-requests // clients)):
            some = rng.sample(names, rng.randint(1, 4))
            if rng.random() < 0.1:
                body = json.dumps({"paths": some}).encode()
                hang_up(service.url, body, rng.choice([len(body) // 2, len(body)]))
                result = "hung up"
            else:
                try:
                    rows = one.rows(*as_names(some))
                    right = len(rows) == len(some) and all(map(is_right, rows, some))
                    result = "right" if right else "wrong"
                except (RuntimeError, urllib3.exceptions.HTTPError):
                    result = "lost"
            with counting:
                found[result] += 1

    at_once(clients, client)
    return found


def main() -> None:
    parser = timing.arguments("Count right, wrong and lost answers of the service.")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    on = timing.machine()
    images = sorted(path for path in DEMO_IMAGES.iterdir() if path.is_file())
    with tempfile.TemporaryDirectory(prefix="clipbatch-answers-") as scratch, serving(Path(scratch), DEMO_IMAGES) as it:
        begun = time.perf_counter()
        counts = answers(it, images, args.requests, args.clients)
        elapsed_s = time.perf_counter() - begun
    total = sum(counts.values())
    body = (
        f"{total:,} requests by {args.clients} clients, of 1 to 4 images, in {elapsed_s:.0f} s: "
        + ", ".join(f"{count:,} {what}" for what, count in counts.items())
        + "."
    )
    timing.finish("Answers over HTTP", body, EXPECTED, {"machine": on, "answers": counts}, args.report)
    if counts["wrong"] or counts["lost"]:
        raise SystemExit("answers are wrong or lost")


if __name__ == "__main__":
    main()
