"""Label images over HTTP: requests of many clients share batches. Holds no state but what is being answered.

    POST /classify   {"paths": ["a.jpg", ...]} as application/json, below --root; or multipart/form-data with a file
                     for each image; or one image as the body -> {"rows": [...]}, in order, with the columns of the
                     parts; or an Arrow stream, where Accept asks for application/vnd.apache.arrow.stream
    GET  /health     what is served
    GET  /metrics    for Prometheus

A bad image is a row with a status; a wrong request is {"error": ...}: 400 malformed, 403 paths without --root, 413 too
many or too large, 415 another type, 429 more requests than are taken at a time (try again after Retry-After).
Whoever reaches the port may ask, so it is on loopback unless another host is named.

What a service counts, for Prometheus.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from clipbatch import __version__
from clipbatch.config.nesting import parse_json
from clipbatch.config.validation import SettingError, at_least
from clipbatch.errors import InputError
from clipbatch.serving import Classifier, Results


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.images = Counter("clipbatch_images", "Images labelled, by status.", ["status"], registry=registry)
        self.jobs = Counter("clipbatch_jobs", "Jobs of the spool, by result.", ["result"], registry=registry)
        self.job_seconds = Histogram("clipbatch_job_seconds", "From taking a job to its answer.", registry=registry)
        self.requests = Counter("clipbatch_http_requests", "Requests answered, by code.", ["code"], registry=registry)
        self.request_seconds = Histogram(
            "clipbatch_http_request_seconds", "From a request to classify to its answer.", registry=registry
        )
        self.in_hand = Gauge("clipbatch_http_requests_in_hand", "Requests taken, not answered.", registry=registry)

    def text(self) -> bytes:
        """In the format that Prometheus reads."""
        return generate_latest(self._registry)


ARROW = "application/vnd.apache.arrow.stream"
_GONE = 499
"""What nginx writes for a client that has hung up; nobody gets it."""
_PATIENCE_S = 30
"""For requests that are being answered, when the service is to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is taken from clients."""

    requests: int = 64
    """At a time; more get 429. Times `body_mib` it is what they may hold of memory."""
    images: int = 256
    """In one request."""
    body_mib: int = 32
    """Of one request."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            at_least(f"max_{name}", getattr(self, name), 1)


class Api:
    """The routes, as an ASGI application `app`."""

    def __init__(self, classifier: Classifier, metrics: Metrics, limits: Limits) -> None:
        self._classifier, self._metrics, self._limits = classifier, metrics, limits
        self._in_hand = 0
        routes = [
            Route("/classify", self._classify, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _as_error})

    async def _classify(self, request: Request) -> Response:
        begun = time.perf_counter()
        response = await self._limited(request)
        self._metrics.requests.labels(response.status_code).inc()
        self._metrics.request_seconds.observe(time.perf_counter() - begun)
        return response

    async def _limited(self, request: Request) -> Response:
        if self._in_hand >= self._limits.requests:
            error = f"{self._in_hand} requests are being answered, which is all that are taken at a time: try again"
            return JSONResponse({"error": error}, 429, {"Retry-After": "1"})
        self._in_hand += 1
        self._metrics.in_hand.set(self._in_hand)
        try:
            return await self._answered(request)
        except HTTPException as error:
            return _as_error(request, error)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            self._in_hand -= 1
            self._metrics.in_hand.set(self._in_hand)

    async def _answered(self, request: Request) -> Response:
        images, names = await self._images(self._bounded(request))
        results = await self._classifier.aclassify(images)
        if names is not None:
            column = results.table.column_names.index("uri")
            results = Results(results.table.set_column(column, "uri", pa.array(names, pa.string())))
        for status in results.table["status"].to_pylist():
            self._metrics.images.labels(status).inc()
        if ARROW in request.headers.get("accept", ""):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, results.table.schema) as stream:
                stream.write_table(results.table)
            return Response(sink.getvalue().to_pybytes(), media_type=ARROW)
        return JSONResponse({"rows": results.to_pylist()})

    def _bounded(self, request: Request) -> Request:
        """`request` with a body that ends in 413 where it is too large."""
        limit, got = self._limits.body_mib * 2**20, 0

        async def receive() -> Message:
            nonlocal got
            message = await request.receive()
            got += len(message.get("body", b""))
            if got > limit:
                raise HTTPException(413, f"a request of more than {self._limits.body_mib} MiB: send fewer images")
            return message

        return Request(request.scope, receive)

    async def _images(self, request: Request) -> tuple[Sequence[Any], list[str | None] | None]:
        """The images of a request, and the names of those that were sent as files."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        most = self._limits.images
        if kind == "application/json":
            return self._paths(await request.body()), None
        if kind == "multipart/form-data":
            async with request.form(max_files=most, max_fields=0) as form:
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                if not files:
                    raise HTTPException(400, "no file in the form: send one for each image")
                return [await file.read() for file in files], [file.filename for file in files]
        if kind in ("", "application/octet-stream") or kind.startswith("image/"):
            return [await request.body()], None
        raise HTTPException(415, f"{kind}: send application/json, multipart/form-data or an image")

    def _paths(self, body: bytes) -> list[str]:
        root = self._classifier.settings.source.root
        if root is None:
            raise HTTPException(403, "paths are taken only where the service has a --root: send the images themselves")
        try:
            paths = parse_json(body)["paths"]
        except (ValueError, TypeError, KeyError):
            raise HTTPException(400, 'the body is not as it should be: {"paths": ["a.jpg", ...]}') from None
        if not isinstance(paths, list) or not all(isinstance(path, str) and _is_text(path) for path in paths):
            raise HTTPException(400, f"paths is no list of texts: {str(paths)[:100]}")
        if len(paths) > self._limits.images:
            raise HTTPException(413, f"{len(paths)} paths, and {self._limits.images} are taken at a time: send fewer")
        return paths

    async def _health(self, request: Request) -> Response:
        classifier = self._classifier
        labels = classifier.labels
        found = {
            "status": "ok",
            "version": __version__,
            "model": classifier.settings.model.model,
            "pretrained": classifier.settings.model.pretrained,
            "score": classifier.labeller.score_kind,
            "labels": labels.by_group([group.names for group in labels.groups]),
        }
        return JSONResponse(found)

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")


def _as_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def listen(address: str) -> socket.socket:
    """A socket for HOST:PORT, or PORT on loopback; port 0 takes a free one.

    Raises: InputError where it cannot be had.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise SettingError(f"http {address!r} is no address: use HOST:PORT, or PORT on loopback")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"--http {address}: {error.strerror}; choose another address or port") from error


class Server:
    """Answers on `listener` in a thread of its own."""

    def __init__(self, api: Api, listener: socket.socket) -> None:
        config = uvicorn.Config(
            api.app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=_PATIENCE_S
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more connections, and return when those that wait are answered."""
        self._server.should_exit = True
        self._thread.join()
