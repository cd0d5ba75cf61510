"""Label images over HTTP: requests of many clients share batches. Holds no state but what is being answered.

    POST /classify   {"paths": ["a.jpg", ...]} as application/json, below --root; or multipart/form-data with a file
                     for each image; or one image as the body -> {"rows": [...]}, in order, with the columns of the
                     parts; or an Arrow stream, where Accept asks for application/vnd.apache.arrow.stream
    GET  /health     what is served
    GET  /metrics    for Prometheus

A bad image is a row with a status. A request that is not answered gets {"error": ...} with one of the codes in
docs/guides/serving.md. Every answer is counted. `connections` bounds what happens before a request is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from clipbatch import __version__
from clipbatch.serving import Classifier, Results, connections
from clipbatch.serving.connections import SLOW_AFTER_S, listen
from clipbatch.serving.forms import files_of_form, paths_of_json
from clipbatch.serving.limits import Access, Limits
from clipbatch.serving.metrics import Metrics
from clipbatch.serving.sharing import Entry

ARROW = "application/vnd.apache.arrow.stream"
# 16.8 megapixels: a request with no more is taken whatever the others have in hand.
SMALL_PIXELS = 2**24
# nginx's code for a client that has hung up; nobody gets it.
_GONE = 499
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_LARGE_BYTES = 2**16
T = TypeVar("T")
_WANTED = "send application/json, multipart/form-data, image/... or application/octet-stream"


class Api:
    """The routes, as an ASGI application `app`."""

    def __init__(self, classifier: Classifier, metrics: Metrics, limits: Limits, access: Access | None = None) -> None:
        """access: None for loopback, without a token."""
        self.limits, self.metrics = limits, metrics
        self._classifier, self._access = classifier, access or Access()
        self._in_hand, self._pixels = 0, 0
        # In the order in which they began.
        self._uploads: dict[_Upload, None] = {}
        self._routes: dict[str, tuple[tuple[str, ...], Callable[[Request], Awaitable[Response]]]] = {
            "/classify": (("POST",), self._classify),
            "/health": (("GET", "HEAD"), self._health),
            "/metrics": (("GET", "HEAD"), self._show_metrics),
        }

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        request = Request(scope, receive)
        try:
            response = await self._routed(request)
        except ClientDisconnect:
            if not scope["state"].get("refused"):  # and so answered and counted, by its connection
                self.metrics.answered(_GONE)
            return
        except asyncio.CancelledError:
            response = _error(503, "the service ends: ask the next one")
        except HTTPException as error:
            response = _error(error.status_code, error.detail, error.headers)
        except Exception as error:
            response = _failure(error)
        self.metrics.answered(response.status_code)
        await response(scope, receive, send)

    async def _routed(self, request: Request) -> Response:
        self._access.check_host(request)
        path = request.scope["path"]
        if path not in self._routes:
            raise HTTPException(404, f"there is no {path[:100]!r}: use {', '.join(self._routes)}")
        methods, handle = self._routes[path]
        if request.method not in methods:
            raise HTTPException(405, f"use {methods[0]}", {"Allow": ", ".join(methods)})
        return await handle(request)

    async def _classify(self, request: Request) -> Response:
        begun = time.perf_counter()
        try:
            self._access.check_token(request)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            check_type(kind)
            if kind == "application/json" and self._classifier.settings.source.root is None:
                raise HTTPException(
                    403, "paths are taken only where the service has a --root: send the images themselves"
                )
            self._check_in_hand()
            async with self._body(request) as body:
                self._check_in_hand()
                with self._answering():
                    return await self._answered(request, kind, body)
        finally:
            self.metrics.request_seconds.observe(time.perf_counter() - begun)

    def _check_in_hand(self) -> None:
        if self._in_hand >= self.limits.requests:
            raise _busy(f"{self._in_hand} requests are being answered, which is all that are taken at a time")

    @contextlib.contextmanager
    def _answering(self) -> Any:
        self._in_hand += 1
        self.metrics.in_hand.set(self._in_hand)
        try:
            yield
        finally:
            self._in_hand -= 1
            self.metrics.in_hand.set(self._in_hand)

    async def _answered(self, request: Request, kind: str, body: bytes) -> Response:
        content_type = request.headers.get("content-type", "")
        images, names = await _off_loop(len(body), self._images, content_type, kind, body)
        shared = self._classifier.shared()
        entries = await shared.read(list(self._classifier.to_batches(images)))
        if not entries:
            table = self._classifier.classify([]).table
        else:
            with self._admitted(entries):
                table = await shared.label(entries)
        _check_descriptors(table)
        if names is not None:
            table = table.set_column(table.column_names.index("uri"), "uri", pa.array(names, pa.string()))
        self.metrics.labelled(Counter(table["status"].to_pylist()))
        return await _off_loop(table.nbytes, _answer, table, ARROW in request.headers.get("accept", ""))

    @contextlib.contextmanager
    def _admitted(self, entries: Sequence[Entry]) -> Any:
        """Count the pixels of a request among those in hand. Raises: HTTPException where they are too many."""
        pixels, most = sum(entry.pixels for entry in entries), self.limits.megapixels * 10**6
        sizes = f"{pixels / 1e6:.0f} megapixels, and {self.limits.megapixels} are taken at a time"
        if pixels > most:
            raise HTTPException(413, f"images of {sizes}: send fewer, or smaller ones")
        if pixels > SMALL_PIXELS and self._pixels + pixels > most:
            raise _busy(f"images of {sizes}, of which others have some")
        self._pixels += pixels
        try:
            yield
        finally:
            self._pixels -= pixels

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts among what bodies hold of memory while it is in use."""
        upload = _Upload()
        self._uploads[upload] = None
        try:
            body = await self._received(request, upload)
            upload.complete = True
            yield body
        finally:
            del self._uploads[upload]

    async def _received(self, request: Request, upload: _Upload) -> bytes:
        limit = self.limits.body_mib * 2**20
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                upload.size = len(body)
                if upload.size > limit:
                    raise HTTPException(413, f"a request of more than {self.limits.body_mib} MiB: send fewer images")
                if sum(other.size for other in self._uploads) > limit * self.limits.requests:
                    self._make_room(upload)
        except asyncio.CancelledError:
            if not upload.dropped:
                raise
            raise _busy("the bodies of requests fill the memory, and this one was slow") from None
        return bytes(body)

    def _make_room(self, upload: _Upload) -> None:
        """Drop the slowest body for the sake of `upload`; or that, where none is slow."""
        now = time.monotonic()
        for other in self._uploads:
            if other is not upload and not other.complete and now - other.begun > SLOW_AFTER_S:
                other.drop()
                return
        raise _busy("the bodies of other requests fill the memory")

    def _images(self, content_type: str, kind: str, body: bytes) -> tuple[Sequence[Any], list[str] | None]:
        """The images of a request, and the names of those that were sent as files."""
        most = self.limits.images
        if kind == "application/json":
            return paths_of_json(body, most=most, max_depth=self.limits.json_depth), None
        if kind == "multipart/form-data":
            files = files_of_form(body, content_type, most)
            return [data for _, data in files], [name for name, _ in files]
        return [body], None

    async def _health(self, request: Request) -> Response:
        classifier = self._classifier
        labels = classifier.labels
        health = {
            "status": "ok",
            "version": __version__,
            "model": classifier.settings.model.model,
            "pretrained": classifier.settings.model.pretrained,
            "score": classifier.labeller.score_kind,
            "labels": labels.by_group([group.names for group in labels.groups]),
        }
        return JSONResponse(health)

    async def _show_metrics(self, request: Request) -> Response:
        text, content_type = self.metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})


class _Upload:
    """A body on its way, and then in use."""

    def __init__(self) -> None:
        self.begun, self.size = time.monotonic(), 0
        self.complete = self.dropped = False
        self._task = asyncio.current_task()

    def drop(self) -> None:
        self.dropped = True
        if self._task:
            self._task.cancel()


class Server(connections.Server):
    """Answers the requests of `api` on `listener` in a thread of its own."""

    def __init__(self, api: Api, listener: Any) -> None:
        super().__init__(api.app, listener, api.limits, api.metrics.answered)


def check_type(kind: str) -> None:
    """Raises: HTTPException for a content type other than those of `POST /classify`."""
    if kind in ("application/json", "multipart/form-data", "application/octet-stream") or kind.startswith("image/"):
        return
    raise HTTPException(415, f"the content type is {kind[:100] or 'missing'}: {_WANTED}")


async def _off_loop(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """What `work` makes of `arguments`; by a thread where they are large, as the loop serves all other clients."""
    return work(*arguments) if size < _LARGE_BYTES else await asyncio.to_thread(work, *arguments)


def _answer(table: pa.Table, as_arrow: bool) -> Response:
    if as_arrow:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return Response(sink.getvalue().to_pybytes(), media_type=ARROW)
    return JSONResponse({"rows": Results(table).to_pylist()})


def _check_descriptors(table: pa.Table) -> None:
    """Raises: HTTPException where a file could not be opened because this process had no descriptor left."""
    texts = {os.strerror(number) for number in _NO_DESCRIPTORS}
    rows = zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True)
    if any(status == "unreadable" and error in texts for status, error in rows):
        raise HTTPException(503, "the service has too many files open: try again", {"Retry-After": "1"})


def _error(status: int, reason: str, headers: Any = None) -> Response:
    return JSONResponse({"error": reason}, status, headers)


def _busy(reason: str) -> HTTPException:
    return HTTPException(429, f"{reason}: try again", {"Retry-After": "1"})


def _failure(error: Exception) -> Response:
    """The answer where something other than the request is wrong."""
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
        return _error(503, "the service has too many files open: try again", {"Retry-After": "1"})
    print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    return _error(500, f"the service failed ({type(error).__name__}): its log says more")


__all__ = ["ARROW", "Access", "Api", "Limits", "Metrics", "Server", "listen"]
