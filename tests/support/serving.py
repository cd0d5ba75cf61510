"""`clipbatch serve` in a process of its own, or its HTTP side in this one; requests, and jobs for its spool."""

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from clipbatch import Classifier
from clipbatch.serving.http import Access, Api, Limits, Metrics, Server, listen
from tests.conftest import DEMO, start

PATIENCE_S = 600.0


class Service:
    """A running service. `url` is where it answers over HTTP, if it does."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.url, self.said = process, "", list[str]()
        assert process.stderr
        for line in process.stderr:
            self.said.append(line)
            if " serving " in line:
                break
        else:
            raise AssertionError(f"ended with {process.wait()}: {self.said}")
        if found := re.search(r"http://\S+:\d+", self.said[-1]):
            self.url = found[0]
        threading.Thread(target=lambda: self.said.extend(process.stderr or ()), daemon=True).start()

    def end(self, signum: int) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=PATIENCE_S)


@contextlib.contextmanager
def serving(*args: object, **environment: str) -> Iterator[Service]:
    """`clipbatch serve ARGS` with the embedded model; killed at the end, if it still runs."""
    process = start("serve", *args, *DEMO, "--device", "cpu", env={**os.environ, "HF_HUB_OFFLINE": "1", **environment})
    try:
        yield Service(process)
    finally:
        process.kill()
        process.communicate()


def drop(spool: Path, name: str, paths: Sequence[object]) -> None:
    """A job that appears whole."""
    (spool / f".{name}").write_text("".join(f"{path}\n" for path in paths))
    os.rename(spool / f".{name}", spool / "in" / name)


def answer(spool: Path, name: str, result: str = "done") -> dict[str, Any]:
    """The answer to a job, when it comes."""
    file, begun = spool / result / f"{name}.json", time.monotonic()
    while not file.exists():
        assert time.monotonic() - begun < PATIENCE_S, sorted(map(str, spool.glob("*/*")))
        time.sleep(0.02)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def wait_for(path: Path) -> None:
    begun = time.monotonic()
    while not path.exists():
        assert time.monotonic() - begun < PATIENCE_S, path
        time.sleep(0.002)


@contextlib.contextmanager
def answering(
    classifier: Classifier, limits: Limits, access: Access | None = None, metrics: Metrics | None = None
) -> Iterator[str]:
    """A server in this process; gives its url."""
    with listen("0") as listener:
        server = Server(Api(classifier, metrics or Metrics(), limits, access), listener)
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


def ask(url: str, body: bytes, kind: str, **headers: str) -> urllib3.BaseHTTPResponse:
    """POST /classify on a connection of its own."""
    with urllib3.PoolManager() as pool:
        return pool.request(
            "POST", f"{url}/classify", body=body, headers={"content-type": kind, **headers}, retries=False
        )


def paths(names: list[str]) -> bytes:
    """The body of a request for files below the root."""
    return json.dumps({"paths": names}).encode()


def connect(url: str) -> socket.socket:
    where = urlsplit(url)
    return socket.create_connection((where.hostname or "", where.port or 0), timeout=60)


def begin(url: str, body: bytes, send: int, kind: str = "application/json") -> socket.socket:
    """A request of which only `send` bytes of the body are sent."""
    sock = connect(url)
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body[:send])
    return sock


def finished(sock: socket.socket, rest: bytes = b"") -> tuple[int, bytes]:
    """Send the rest of a request; its code and answer. The socket is closed then."""
    with sock:
        sock.sendall(rest)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = sock.recv(65536)
            assert piece, answer
            answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        (length,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += sock.recv(65536)
        return int(head.split()[1]), body


def flat_png(width: int, height: int) -> bytes:
    """A PNG of one gray, a few kilobytes for any size."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
