"""GET over http and https: pooled connections, limits on time, bytes and redirects. Tries once; callers try again.

Sends no credentials, so a redirect cannot leak any: use signed urls. Proxies come from the usual environment variables
(HTTPS_PROXY, NO_PROXY).
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import string
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from clipbatch import __version__
from clipbatch.storage.failures import RemoteError, of_code
from clipbatch.storage.files import Seekable
from clipbatch.types import Status

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager


CONNECT_S = 5.0
# A connection that sends no byte for so long counts as stalled.
SILENCE_S = 20.0
# Connections to one host that are kept for the next request.
CONNECTIONS = 256
MAX_REDIRECTS = 5
_CHUNK_BYTES = 2**20

# Whether a redirect may lead to this url.
Allowed = Callable[[str], bool]


def chunks(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    silence_s: float = SILENCE_S,
    allowed: Allowed = lambda url: True,
) -> Iterator[bytes]:
    """The body of the answer to a GET of `url`, with its Content-Encoding removed.

    max_bytes: limit on the body, whatever the headers say. timeout_s: limit on all of it, redirects included, which
    also ends a server that sends a byte now and then. silence_s: limit on the time without any byte.
    Raises: RemoteError.
    """
    with _answer(url, {}, timeout_s, silence_s, allowed) as (response, deadline):
        announced = response.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            raise RemoteError("too_large", f"{announced} bytes, over the limit of {max_bytes}")
        got = 0
        while chunk := response.read1(_CHUNK_BYTES):
            got += len(chunk)
            if got > max_bytes:
                raise RemoteError("too_large", f"more bytes than the limit of {max_bytes}")
            if time.monotonic() > deadline:
                raise RemoteError("timeout", f"{got} bytes within {timeout_s:g} s, and no end", cause="unreachable")
            yield chunk


def get(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    silence_s: float = SILENCE_S,
    allowed: Allowed = lambda url: True,
) -> bytearray:
    """All of `chunks`. Raises: RemoteError."""
    return bytearray().join(chunks(url, max_bytes=max_bytes, timeout_s=timeout_s, silence_s=silence_s, allowed=allowed))


class RangeFile(Seekable):
    """The resource at `url` as a seekable file, read by ranges. Only `read_at` may be called by several threads."""

    def __init__(self, url: str, *, timeout_s: float, allowed: Allowed = lambda url: True) -> None:
        """timeout_s: limit on each read. Raises: RemoteError, also where the server does not support ranges."""
        self._url, self._timeout_s, self._allowed = url, timeout_s, allowed
        with self._ranged(0, 1) as (response, _):
            response.read()
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise RemoteError("unreadable", "the server does not say how long it is")
        self.size = int(total)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, fewer only at the end of the file, in one request. Raises: RemoteError."""
        left = max(0, self.size - self.at)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = self.read_at(self.at, wanted)
        self.at += wanted
        return bytes(data)

    def read_at(self, start: int, length: int) -> bytearray:
        """Bytes [start, start + length), all of which must exist. Raises: RemoteError."""
        data = bytearray()
        with self._ranged(start, length) as (response, deadline):
            while len(data) < length and (chunk := response.read1(length - len(data))):
                data += chunk
                if time.monotonic() > deadline:
                    what = f"{len(data)} of {length} bytes within {self._timeout_s:g} s"
                    raise RemoteError("timeout", what, passes=True, cause="unreachable")
        if len(data) < length:
            raise RemoteError("truncated", f"{len(data)} of {length} bytes", passes=True)
        return data

    @contextlib.contextmanager
    def _ranged(self, start: int, length: int) -> Iterator[tuple[BaseHTTPResponse, float]]:
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        with _answer(self._url, headers, self._timeout_s, SILENCE_S, self._allowed) as (response, deadline):
            if response.status != 206:
                raise RemoteError("unreadable", "the server gives no parts of it (Range): copy it to a disk")
            yield response, deadline


@contextlib.contextmanager
def _answer(
    url: str, headers: dict[str, str], timeout_s: float, silence_s: float, allowed: Allowed
) -> Iterator[tuple[BaseHTTPResponse, float]]:
    """The answer to a GET after redirects, and the time.monotonic() at which its time is over.

    Raises: RemoteError, whatever goes wrong.
    """
    from http.client import IncompleteRead

    from urllib3 import exceptions

    deadline = time.monotonic() + timeout_s
    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = _request(url, headers, deadline, silence_s)
            try:
                if response.status in (301, 302, 303, 307, 308) and (location := response.headers.get("Location")):
                    url = _redirected(url, location, allowed)
                    continue
                if response.status not in (200, 206):
                    raise _refusal(response)
                yield response, deadline
                return
            finally:
                response.close()  # a connection whose answer was read to its end is back in the pool already
        raise RemoteError("unreadable", f"more than {MAX_REDIRECTS} redirects")
    except RemoteError:
        raise
    except exceptions.NewConnectionError as error:
        raise _no_answer("unreadable", f"no connection to {urlsplit(url).netloc}: {_brief(error)}") from error
    except exceptions.TimeoutError as error:
        raise _no_answer("timeout", f"no answer: {_brief(error)}") from error
    except exceptions.SSLError as error:
        raise RemoteError("unreadable", f"no secure connection: {_brief(error)}") from error
    except (exceptions.LocationValueError, ValueError) as error:
        raise RemoteError("unreadable", f"not a url that can be asked: {_brief(error)}") from error
    except (exceptions.HTTPError, OSError) as error:
        if any(isinstance(cause, IncompleteRead) for cause in (error, *error.args)):
            raise RemoteError("truncated", f"the connection ended early: {_brief(error)}", passes=True) from error
        raise _no_answer("unreadable", f"no whole answer: {_brief(error)}") from error


def _no_answer(status: Status, text: str) -> RemoteError:
    return RemoteError(status, text, passes=True, cause="unreachable", silent=True)


def _request(url: str, headers: dict[str, str], deadline: float, silence_s: float) -> BaseHTTPResponse:
    from urllib3 import Timeout

    left_s = max(0.001, deadline - time.monotonic())
    return _pool(_proxy(url)).request(
        "GET",
        url,
        headers={"User-Agent": f"clipbatch/{__version__}", "Accept-Encoding": "identity", **headers},
        preload_content=False,
        redirect=False,
        retries=False,
        timeout=Timeout(connect=min(CONNECT_S, left_s), read=min(silence_s, left_s)),
    )


@functools.lru_cache
def _pool(proxy: str | None) -> PoolManager:
    from urllib3 import PoolManager, ProxyManager

    how: dict[str, Any] = {"num_pools": CONNECTIONS, "maxsize": CONNECTIONS}
    pool = ProxyManager(proxy, **how) if proxy else PoolManager(**how)
    pool.pool_classes_by_scheme = _pool_classes()
    return pool


@functools.lru_cache
def _pool_classes() -> dict[str, Any]:
    """urllib3's pools, with connections that skip informational answers: Python's own skip `100 Continue` only, and
    would take `103 Early Hints` for the answer itself."""
    from http.client import HTTPResponse, parse_headers

    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Response(HTTPResponse):
        def _read_status(self) -> tuple[str, int, str]:
            while True:
                version, code, reason = super()._read_status()  # type: ignore[misc]
                if code not in range(102, 200):
                    return version, code, reason
                parse_headers(self.fp)

    class Connection(HTTPConnection):
        response_class = Response

    class SecureConnection(HTTPSConnection):
        response_class = Response

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": Pool, "https": SecurePool}


def _proxy(url: str) -> str | None:
    """The proxy for `url`, by the environment."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _redirected(url: str, location: str, allowed: Allowed) -> str:
    target = urljoin(url, _from_header(location))
    if urlsplit(target).scheme not in ("http", "https"):
        raise RemoteError("unreadable", f"redirected to {target!r}, which is not on the web")
    if not allowed(target):
        raise RemoteError("unreadable", f"redirected out of --root, to {target!r}")
    return target


def _from_header(location: str) -> str:
    """A Location as a url: headers are decoded as latin-1, but many servers put UTF-8 into this one."""
    data = location.encode("latin-1", "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return quote(data, safe=string.punctuation)


def _refusal(response: BaseHTTPResponse) -> RemoteError:
    text = f"the server says {response.status} {response.reason or ''}".rstrip()
    return of_code(response.status, text, _seconds(response.headers.get("Retry-After", "")))


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds from now; 0 where it is absent or malformed."""
    if retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _brief(error: BaseException) -> str:
    """The innermost reason, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__
