"""A proxy before an S3 or web server that fails as such servers do: at random, for a while, or from some point on."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3

_HOPS = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")
Fault = Callable[["Proxied"], bool]
"""Answers a request and returns True, or leaves it to the server behind the proxy and returns False."""


class Proxied(BaseHTTPRequestHandler):
    """One request to the proxy."""

    protocol_version = "HTTP/1.1"
    server: "FaultProxy"

    def do_GET(self) -> None:
        self.server.requests += 1
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.fault(self):
            self.server.faults += 1
            return
        answer = self.server.pool.request(
            self.command,
            self.server.upstream + self.path,
            body=data or None,
            headers={name: value for name, value in self.headers.items() if name.lower() not in _HOPS},
            preload_content=False,
            redirect=False,
            retries=False,
        )
        body = answer.read(decode_content=False)
        length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOPS:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def refuse(self, code: int, error: str = "", **headers: object) -> bool:
        """Answer with a status code, and with S3's XML for `error`, as S3 does: without it to a HEAD request."""
        xml = f"<?xml version='1.0'?><Error><Code>{error}</Code><Message>The test says {error}</Message></Error>"
        body = xml.encode() if error and self.command != "HEAD" else b""
        self.server.codes[code] += 1
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return True

    def hang_up(self) -> bool:
        """Close the connection without an answer."""
        self.close_connection = True
        return True

    def log_message(self, *args: Any) -> None:
        pass


class FaultProxy(ThreadingHTTPServer):
    """Forwards requests to `upstream`, but for those that `fault`, which a test sets, answers itself."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Proxied)
        self.upstream = upstream
        self.fault: Fault = lambda request: False
        self.pool = urllib3.PoolManager(maxsize=256)
        self.requests = self.faults = 0
        self.codes: Counter[int] = Counter()
        self.root = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what tests are about."""


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A running proxy before the server at `upstream`."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        proxy.pool.clear()


def at_random(share: float, code: int, error: str = "", seed: int = 1) -> Fault:
    """A share of all requests fails."""
    rng, lock = random.Random(seed), threading.Lock()

    def fault(request: Proxied) -> bool:
        with lock:
            fails = rng.random() < share
        return fails and request.refuse(code, error)

    return fault


def for_a_while(seconds: float, fails: Fault, after: int = 0) -> Fault:
    """All requests fail for `seconds`, beginning with number `after`, which is counted from 0."""
    begun: list[float] = []
    lock, count = threading.Lock(), iter(range(10**9))

    def fault(request: Proxied) -> bool:
        with lock:
            if next(count) == after:
                begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] < seconds and fails(request)

    return fault


def from_then_on(after: int, fails: Fault) -> Fault:
    """All requests fail but the first `after`."""
    return for_a_while(float("inf"), fails, after)
