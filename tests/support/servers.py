"""Servers that tests start on free ports of this machine: a web server that misbehaves on request, and an S3 one."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3

Answer = Callable[["Handler"], None]
S3 = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Handler(BaseHTTPRequestHandler):
    """One request; what an `Answer` is given."""

    protocol_version = "HTTP/1.1"
    server: "Web"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers), time.monotonic()))
        self.server.answers.get(self.path.partition("?")[0], status(404))(self)

    def head(self, code: int = 200, **headers: object) -> None:
        """Status and headers; underscores become dashes."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    """A web server whose answers, by path, are what a test puts into `answers`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str], float]] = []
        self.root = f"http://127.0.0.1:{self.server_port}"
        # Set when the test is over: what an answer that stalls waits for.
        self.over = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what tests are about."""

    def hits(self, path: str) -> int:
        return sum(seen == path for seen, _, _ in self.seen)


@contextmanager
def web() -> Iterator[Web]:
    """A running `Web`."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def body(data: bytes) -> Answer:
    """A proper answer."""

    def answer(handler: Handler) -> None:
        handler.head(Content_Length=len(data))
        handler.send(data)

    return answer


def parts_of(data: bytes, asked: list[int] | None = None) -> Answer:
    """Serves the requested ranges of `data`, and records their sizes in `asked`."""

    def answer(handler: Handler) -> None:
        first, last = map(int, handler.headers.get("Range", "").removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        if asked is not None:
            asked.append(len(part))
        handler.head(206, Content_Length=len(part), Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        handler.send(part)

    return answer


def status(code: int, **headers: object) -> Answer:
    """An answer of a status alone."""
    return lambda handler: handler.head(code, Content_Length=0, **headers)


def in_turn(*answers: Answer) -> Answer:
    """Each of `answers` once, and then the last one for ever."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


class Buckets:
    """An S3 server in a process of its own; knows nobody's keys, until it is told to ask for some."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._pool = urllib3.PoolManager()
        self.env = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, path: str, data: bytes = b"", **headers: str) -> None:
        """Make the bucket or the object `path`."""
        self._ask("PUT", path, data, headers)

    def guard(self, guarded: bool) -> None:
        """Whether keys are looked at."""
        self._ask("POST", "moto-api/reset-auth", b"0" if guarded else b"inf")

    def _ask(self, method: str, path: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        answer = self._pool.request(method, f"{self.endpoint}/{path}", body=data, headers=headers)
        assert answer.status == 200, (path, answer.status, answer.data)


@contextmanager
def buckets() -> Iterator[Buckets]:
    """A running S3 server; it ends with this process, whatever happens."""
    command = [sys.executable, "-W", "ignore", "-c", S3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            while line and not line.strip().isdigit():
                line = process.stdout.readline()
            yield Buckets(json.loads(line))
        finally:
            process.kill()
