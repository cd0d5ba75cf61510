"""Attacks on a running service, beside healthy clients whose answers are compared and timed.

Knows no pytest: tests/serving/test_siege.py has the small form, and `benchmarks/siege.py` does the same for longer.
"""

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from tests.support.corpus import photo
from tests.support.serving import begin, connect, flat_png, paths

CLOSE = 1e-3
"""Between scores of batches of other sizes, in bf16 (docs/explanation/accuracy.md)."""
DEADLY = (233, 179)
"""Width and height of the image that the preloaded library (tests/faults/deadly.c) knows by its bytes."""
_ROOT = Path(__file__).parents[2]
_HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"


@dataclass(slots=True)
class Healthy:
    """What became of the requests of healthy clients."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def share(self, percent: int) -> float:
        """Seconds within which so many of a hundred requests were answered."""
        return statistics.quantiles(self.seconds, n=100)[percent - 1]


@dataclass(slots=True)
class Target:
    """The service that is attacked."""

    url: str
    folder: Path
    """Its root, with the images that healthy clients ask for."""
    expected: dict[str, dict[str, Any]]
    """The right row of each image, by its name."""
    spool: Path | None = None
    deadly: bytes = b""
    """An image that kills the decoder."""
    stop: threading.Event = field(default_factory=threading.Event)
    counts: dict[str, int] = field(default_factory=dict)
    """How often each attack was made."""
    surprises: list[str] = field(default_factory=list)
    """Answers to attacks that should not be."""


def deadly_image(path: Path) -> bytes:
    """A JPEG that the preloaded library knows."""
    photo(np.random.default_rng(1), *DEADLY).save(path)
    return path.read_bytes()


def healthy(target: Target, seconds: float, clients: int, pause_s: float = 0.05) -> Healthy:
    """Ask for images for so long, in new connections and in kept ones, and compare each row."""
    result, until = Healthy(), time.monotonic() + seconds
    names = sorted(target.expected)

    def client(number: int) -> None:
        rng, pool = random.Random(number), urllib3.PoolManager()
        while time.monotonic() < until:
            chosen = rng.sample(names, rng.randint(1, 3))
            begun = time.perf_counter()
            try:
                answer = pool.request(
                    "POST",
                    f"{target.url}/classify",
                    body=paths(chosen),
                    headers={"content-type": "application/json"},
                    retries=False,
                )
                result.seconds.append(time.perf_counter() - begun)
                if answer.status != 200:
                    result.wrong.append(f"{answer.status}: {answer.data[:200]!r}")
                else:
                    result.wrong += _differences(answer.json()["rows"], chosen, target.expected)
            except Exception as error:
                result.wrong.append(repr(error))
            if rng.random() < 0.2:
                pool.clear()
            time.sleep(pause_s)
        pool.clear()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result


def _differences(rows: list[dict[str, Any]], names: list[str], expected: dict[str, dict[str, Any]]) -> Iterator[str]:
    if [row["uri"] for row in rows] != names:
        yield f"rows of {[row['uri'] for row in rows]} in place of {names}"
        return
    for row in rows:
        right = expected[row["uri"]]
        facts = ("status", "error", "width", "height", "label")
        if any(row[name] != right[name] for name in facts):
            yield f"{row['uri']}: {[row[name] for name in facts]} in place of {[right[name] for name in facts]}"
        elif row["scores"] is not None and not np.allclose(row["scores"], right["scores"], atol=CLOSE):
            yield f"{row['uri']}: other scores"


Attack = Callable[[Target, random.Random], object]


@contextlib.contextmanager
def attacked(target: Target, attacks: dict[str, tuple[Attack, float]]) -> Iterator[None]:
    """Meanwhile each of `attacks` is made again and again, with so many seconds between two."""

    def attack(name: str, once: Attack, pause_s: float) -> None:
        rng = random.Random(name)
        while not target.stop.wait(pause_s):
            with contextlib.suppress(OSError, urllib3.exceptions.HTTPError):
                once(target, rng)
            target.counts[name] = target.counts.get(name, 0) + 1

    threads = [threading.Thread(target=attack, args=(name, once, pause_s)) for name, (once, pause_s) in attacks.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        target.stop.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def attacked_by_a_process(target: Target) -> Iterator[None]:
    """As `attacked` with all of `ATTACKS`, by a process of low priority: outsiders have processors of their own."""
    facts = {
        "url": target.url,
        "folder": str(target.folder),
        "spool": str(target.spool),
        "names": sorted(target.expected),
        "deadly": target.deadly.hex(),
    }
    command = ["nice", "-n", "15", sys.executable, "-m", "tests.support.attacks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(facts) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            told = json.loads(process.stdout.read())
            target.counts, target.surprises = told["counts"], told["surprises"]


def main() -> None:
    """Attack what standard input names until it ends."""
    facts = json.loads(sys.stdin.readline())
    expected: dict[str, dict[str, Any]] = {name: {} for name in facts["names"]}
    deadly = bytes.fromhex(facts["deadly"])
    target = Target(facts["url"], Path(facts["folder"]), expected, Path(facts["spool"]), deadly)
    _bomb()
    print("ready", flush=True)
    with attacked(target, ATTACKS):
        sys.stdin.read()
    print(json.dumps({"counts": target.counts, "surprises": target.surprises}))


def drip(target: Target, rng: random.Random) -> None:
    """Sixty-four bodies that arrive a byte at a time."""
    socks = [begin(target.url, b"x" * 1000, 1) for _ in range(64)]
    for _ in range(40):
        if target.stop.wait(0.1):
            break
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"x")
    for sock in socks:
        sock.close()


def idle(target: Target, rng: random.Random) -> None:
    """Nine hundred connections without a word."""
    socks = []
    with contextlib.suppress(OSError):
        for _ in range(900):
            socks.append(connect(target.url))
    target.stop.wait(2)
    for sock in socks:
        sock.close()


def large_header(target: Target, rng: random.Random) -> None:
    """Ten megabytes of a header."""
    with connect(target.url) as sock:
        sock.sendall(_HEAD + b"X: " + b"a" * 10_000_000)


def cut_form(target: Target, rng: random.Random) -> None:
    """A form that ends anywhere."""
    images = [(f"{number}", (f"{number}.png", flat_png(30, 30), "image/png")) for number in range(3)]
    body, kind = urllib3.encode_multipart_formdata(images)
    _expect(target, _post(target, body[: rng.randrange(1, len(body) - 2)], kind), 400)


def deep_json(target: Target, rng: random.Random) -> None:
    """Lists inside of lists."""
    depth = rng.choice([20, 1000, 1_000_000])
    _expect(target, _post(target, b'{"paths":' + b"[" * depth + b"]" * depth + b"}", "application/json"), 400)


def bomb(target: Target, rng: random.Random) -> None:
    """A PNG of 13,000 x 13,000 pixels in some kilobytes."""
    _expect(target, _post(target, _bomb(), "image/png"), 200, 429)


_BOMBS: list[bytes] = []


def _bomb() -> bytes:
    if not _BOMBS:
        _BOMBS.append(flat_png(13_000, 13_000))
    return _BOMBS[0]


def bombs(target: Target, rng: random.Random) -> None:
    """Eight of them in a request."""
    images = [("image", (f"{number}.png", _bomb(), "image/png")) for number in range(8)]
    _expect(target, _post(target, *urllib3.encode_multipart_formdata(images)), 413)


def hang_up(target: Target, rng: random.Random) -> None:
    """Leave in the middle of the body, or before the answer."""
    body = paths(rng.sample(sorted(target.expected), 3))
    begin(target.url, body, rng.choice([len(body) // 2, len(body)])).close()


def crash(target: Target, rng: random.Random) -> None:
    """An image that kills the decoder, between two that do not."""
    image = flat_png(30, 30)
    parts = [("image", (name, data, "image/jpeg")) for name, data in (("a", image), ("b", target.deadly), ("c", image))]
    answer = _post(target, *urllib3.encode_multipart_formdata(parts))
    _expect(target, answer, 200)
    if answer.status == 200 and [row["status"] for row in answer.json()["rows"]] != ["ok", "crashed", "ok"]:
        target.surprises.append(f"a decoder that dies: {answer.data[:300]!r}")


def hostile_jobs(target: Target, rng: random.Random) -> None:
    """Names, links and kinds of files that nobody means well with."""
    assert target.spool is not None
    place, number = target.spool / "in", rng.randrange(10**9)
    (place / f"{'n' * 240}-{number}").touch()
    (place / f"link-{number}.txt").symlink_to("/etc/passwd")
    (place / f"folder-{number}").symlink_to(target.folder)
    (place / f"nowhere-{number}").symlink_to(f"nowhere-{number}")
    os.mkfifo(place / f"pipe-{number}.txt")
    (place / os.fsdecode(b"\xff\xfe-%d.txt" % number)).write_text("x")
    (place / f"a\nb\x1b[31m-{number}.csv").write_text("uri\n" + '"' * 999)
    (place / f"deep-{number}.jsonl").write_text("[" * 100_000)
    for name in ("a", "a.json", "a.json.json"):
        (place / f".{name}").write_text("nowhere.jpg\n")
        os.rename(place / f".{name}", place / name)


def _post(target: Target, body: bytes, kind: str) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(timeout=120) as pool:
        return pool.request("POST", f"{target.url}/classify", body=body, headers={"content-type": kind}, retries=False)


def _expect(target: Target, answer: urllib3.BaseHTTPResponse, *codes: int) -> None:
    if answer.status not in codes:
        target.surprises.append(f"{answer.status} in place of {codes}: {answer.data[:200]!r}")


ATTACKS: dict[str, tuple[Attack, float]] = {
    "64 dripping bodies": (drip, 1.0),
    "900 idle connections": (idle, 5.0),
    "10 MB headers": (large_header, 1.0),
    "cut forms": (cut_form, 0.5),
    "deep JSON": (deep_json, 1.0),
    "bombs of 169 megapixels": (bomb, 20.0),
    "8 bombs in a request": (bombs, 20.0),
    "hang-ups": (hang_up, 0.3),
    "decoders that die": (crash, 30.0),
    "hostile jobs": (hostile_jobs, 10.0),
}
"""Each with the seconds between two."""


def memory_mib(pid: int) -> float:
    """What a process and its children hold for themselves (proportional set size)."""
    total = 0.0
    pids = [pid]
    with contextlib.suppress(OSError):  # some have ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    for one in pids:
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
    return total


if __name__ == "__main__":
    main()
