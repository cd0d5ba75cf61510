"""Connections of clients that are slow, silent, malformed or too many, before the application sees a request.

uvicorn answers requests; it bounds neither the bytes of headers, nor how long headers, bodies and answers may take. A
`BoundedConnection` does: it has one timer at a time, and says as JSON why it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from clipbatch.config.validation import host_and_port
from clipbatch.errors import InputError
from clipbatch.serving.limits import Limits

# A request that has been sending its body for longer makes room for others where there is none.
SLOW_AFTER_S = 2.0
# For a client that still sends, to read why it has been refused.
_LINGER_S = 2.0


class BoundedConnection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        refused: Callable[[int], object],
        unused: dict[BoundedConnection, None],
        **named: Any,
    ) -> None:
        """refused: called with the status of each answer that is given here. unused: the connections of this server
        that have sent no whole request yet, the oldest first."""
        super().__init__(*args, **named)
        self._limits, self._refused, self._unused = limits, refused, unused
        self._timer: asyncio.TimerHandle | None = None
        # When it began to be idle, or to send its body.
        self._since = self.loop.time()
        self._discards = self._too_large = False
        # Bytes since the last piece of a body or the last end of headers: of headers, or of what follows a body.
        self._unfinished = 0
        self._progress = False

    @property
    def is_idle(self) -> bool:
        """Whether no request is in hand."""
        return not self._is_ending and (self.cycle is None or self.cycle.response_complete)

    @property
    def is_slow(self) -> bool:
        """Whether its request has been sending its body for long."""
        sends = not self.is_idle and not self._is_ending and self.cycle.more_body
        return bool(sends and self.loop.time() - self._since > SLOW_AFTER_S)

    @property
    def _is_ending(self) -> bool:
        return self._discards or self.transport.is_closing()

    def yield_place(self) -> None:
        """End, as others want the place."""
        if self.is_idle:
            self.transport.abort()
        else:
            self._refuse(408, "the request was slower than others, and the service is full: try again")

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unused[self] = None
        self._wait(self._limits.idle_time, self._end_idle)
        if len(self.connections) > self._limits.connections and not self._make_room():
            self._refused(503)
            transport.write(_answer(503, f"{self._limits.connections} connections are open, which is all: try again"))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._unused.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._discards:
            return
        self._progress = False
        super().data_received(data)
        self._unfinished = 0 if self._progress else self._unfinished + len(data)
        if self._unfinished > self._limits.header_kib * 1024:
            self._too_large = True
            self.send_400_response("")

    # What the parser calls

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.header_kib * 1024:
            self._too_large = True
            raise ValueError("headers are too large")
        first = self.cycle is None or self.cycle.response_complete
        super().on_headers_complete()
        self._progress = True
        self._unused.pop(self, None)
        if first:  # otherwise its body is not read before the answer to the request before it
            self._expect_body()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._progress = True

    def on_message_complete(self) -> None:
        self._progress = True
        super().on_message_complete()
        self._stop_waiting()
        if self.cycle is None or self.cycle.response_complete:
            self._wait(self._limits.idle_time, self._end_idle)

    # What uvicorn calls

    def on_response_complete(self) -> None:
        waiting = bool(self.pipeline)
        super().on_response_complete()
        if waiting:
            if self.cycle.more_body:
                self._expect_body()
        elif self.transport is not None:  # idle, or with an answer or the rest of a body still on its way
            self._wait(self._limits.idle_time, self._end_idle)

    def send_400_response(self, msg: str) -> None:
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and (self.pipeline or not self.cycle.more_body):  # what follows a request that is good
            self._discards = True
            self.cycle.keep_alive = False
        elif self._too_large:
            self._refuse(431, f"headers of more than {self._limits.header_kib} KiB: send fewer or shorter ones")
        else:
            self._refuse(400, "this is not HTTP as RFC 9112 has it")

    def _expect_body(self) -> None:
        self._since = self.loop.time()
        self._wait(self._limits.body_time, self._end_body)

    # How it ends

    def _end_idle(self) -> None:
        if self._unfinished and self.is_idle:
            self._refuse(408, f"the headers took longer than {self._limits.idle_time:g} s")
            return
        self.transport.close()
        self._wait(self._limits.idle_time, self.transport.abort)  # a client that does not read its answer

    def _end_body(self) -> None:
        self._refuse(408, f"the body took longer than {self._limits.body_time:g} s: send fewer images at a time")

    def _refuse(self, status: int, reason: str) -> None:
        """Answer in place of the application, and end: not at once, since the client may still be sending."""
        if self.transport.is_closing() or self._discards:
            return
        self._discards = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.scope["state"]["refused"] = True
            cycle.disconnected = True
            cycle.message_event.set()
        self._refused(status)
        self.flow.resume_reading()
        self.transport.write(_answer(status, reason))
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self._wait(_LINGER_S, self.transport.abort)

    def eof_received(self) -> None:
        if self._discards:
            self.transport.close()

    def _make_room(self) -> bool:
        """End another connection: one that is idle, first of all one that never sent a request, or one that is slow."""
        if (first := next(iter(self._unused))) is not self:  # a flood of these must cost next to nothing
            del self._unused[first]
            first.yield_place()
            return True
        others: list[Any] = [other for other in self.connections if other is not self]
        for ready in ([other for other in others if other.is_idle], [other for other in others if other.is_slow]):
            if ready:
                min(ready, key=lambda other: float(other._since)).yield_place()
                return True
        return False

    def _wait(self, seconds: float, then: Callable[[], object]) -> None:
        self._stop_waiting()
        if then == self._end_idle:
            self._since = self.loop.time()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _answer(status: int, reason: str) -> bytes:
    body = json.dumps({"error": reason}).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return STATUS_LINE[status] + head.encode() + body


def listen(address: str) -> socket.socket:
    """A socket for HOST:PORT, or PORT on loopback; port 0 takes a free one.

    Raises: InputError where the address cannot be used.
    """
    host, port = host_and_port(address, "http")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"--http {address}: {error.strerror}; choose another address or port") from error


class _Uvicorn(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for _ in range(10):  # requests whose grace time is over say so
            if not self.server_state.tasks:
                break
            await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


class Server:
    """Answers on `listener` in a thread of its own."""

    def __init__(self, app: Any, listener: socket.socket, limits: Limits, refused: Callable[[int], object]) -> None:
        """app: an ASGI application. refused: called with the status of each answer that it did not give."""
        protocol: Any = functools.partial(BoundedConnection, limits=limits, refused=refused, unused={})
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_config=None,
            log_level="critical",  # what clients do wrong is answered and counted
            access_log=False,
            interface="asgi3",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=3600,  # `BoundedConnection` has its own
            timeout_graceful_shutdown=limits.grace_time,  # type: ignore[arg-type]
        )
        self._server = _Uvicorn(config)
        self._listener = listener
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more connections, and return when requests in hand are answered or the grace time is over."""
        self._server.should_exit = True
        self._thread.join()
