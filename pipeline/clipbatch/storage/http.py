"""GET over http and https: pooled connections, bounded in time, bytes and redirects. Tries once; callers try again.

Sends no credentials of its own, so that none can leak by a redirect: use signed urls. Proxies are taken from the usual
environment (HTTPS_PROXY, NO_PROXY). Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from clipbatch import __version__
from clipbatch.storage.files import Seekable
from clipbatch.types import Status

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager


CONNECT_S = 5.0
SILENCE_S = 20.0
"""Without a byte for so long, a connection counts as stalled."""
CONNECTIONS = 256
"""To one host that are kept for the next request."""
REDIRECTS = 5
_CHUNK_BYTES = 2**20
_GONE = (404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)

Allowed = Callable[[str], bool]
"""Whether a redirect may lead to this url."""


class WebError(OSError):
    """Why there are no bytes."""

    def __init__(self, status: Status, text: str, *, passes: bool = False, retry_after_s: float = 0.0) -> None:
        """passes: another try may succeed, after `retry_after_s` as the server asks."""
        super().__init__(text)
        self.status, self.passes, self.retry_after_s = status, passes, retry_after_s


def chunks(url: str, *, max_bytes: int, timeout_s: float, allowed: Allowed = lambda url: True) -> Iterator[bytes]:
    """The body that `url` answers with. max_bytes: of the body, whatever the headers say. timeout_s: for all of it,
    redirects included; a server that drips does not escape it.

    Raises: WebError.
    """
    with _answer(url, {}, timeout_s, allowed) as (response, deadline):
        announced = response.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            raise WebError("too_large", f"{announced} bytes, over the limit of {max_bytes}")
        got = 0
        while chunk := response.read1(_CHUNK_BYTES):
            got += len(chunk)
            if got > max_bytes:
                raise WebError("too_large", f"more bytes than the limit of {max_bytes}")
            if time.monotonic() > deadline:
                raise WebError("timeout", f"{got} bytes within {timeout_s:g} s, and no end")
            yield chunk


def get(url: str, *, max_bytes: int, timeout_s: float, allowed: Allowed = lambda url: True) -> bytearray:
    """The whole of `chunks`. Raises: WebError."""
    return bytearray().join(chunks(url, max_bytes=max_bytes, timeout_s=timeout_s, allowed=allowed))


class RangeFile(Seekable):
    """The resource at `url` as a file to seek in, read by ranges; for one thread at a time, but for `read_at`."""

    def __init__(self, url: str, *, timeout_s: float, allowed: Allowed = lambda url: True) -> None:
        """timeout_s: for each read. Raises: WebError where the server gives no ranges."""
        self._url, self._timeout_s, self._allowed = url, timeout_s, allowed
        with self._ranged(0, 1) as (response, _):
            response.read()
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise WebError("unreadable", "the server does not say how long it is")
        self.size = int(total)

    def read(self, size: int = -1) -> bytes:
        """As many bytes as there are, up to `size`, in one request."""
        left = max(0, self.size - self.at)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = self.read_at(self.at, wanted)
        self.at += wanted
        return bytes(data)

    def read_at(self, start: int, length: int) -> bytearray:
        """Bytes [start, start + length), which have to be there. Raises: WebError."""
        data = bytearray()
        with self._ranged(start, length) as (response, deadline):
            while len(data) < length and (chunk := response.read1(length - len(data))):
                data += chunk
                if time.monotonic() > deadline:
                    raise WebError(
                        "timeout", f"{len(data)} of {length} bytes within {self._timeout_s:g} s", passes=True
                    )
        if len(data) < length:
            raise WebError("truncated", f"{len(data)} of {length} bytes", passes=True)
        return data

    @contextlib.contextmanager
    def _ranged(self, start: int, length: int) -> Iterator[tuple[BaseHTTPResponse, float]]:
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        with _answer(self._url, headers, self._timeout_s, self._allowed) as (response, deadline):
            if response.status != 206:
                raise WebError("unreadable", "the server gives no parts of it (Range): copy it to a disk")
            yield response, deadline


@contextlib.contextmanager
def _answer(
    url: str, headers: dict[str, str], timeout_s: float, allowed: Allowed
) -> Iterator[tuple[BaseHTTPResponse, float]]:
    """The answer to a GET, redirects followed, and when its time is over; whatever goes wrong is a WebError."""
    from http.client import IncompleteRead

    from urllib3 import exceptions

    deadline = time.monotonic() + timeout_s
    try:
        for _ in range(REDIRECTS + 1):
            response = _request(url, headers, deadline)
            try:
                if response.status in (301, 302, 303, 307, 308) and (location := response.headers.get("Location")):
                    url = _redirected(url, location, allowed)
                    continue
                if response.status not in (200, 206):
                    raise _refusal(response)
                yield response, deadline
                return
            finally:
                response.close()  # of one that was not read to its end; the others' connections are free already
        raise WebError("unreadable", f"more than {REDIRECTS} redirects")
    except WebError:
        raise
    except exceptions.NewConnectionError as error:
        raise WebError(
            "unreadable", f"no connection to {urlsplit(url).netloc}: {_brief(error)}", passes=True
        ) from error
    except exceptions.TimeoutError as error:
        raise WebError("timeout", f"no answer: {_brief(error)}", passes=True) from error
    except exceptions.SSLError as error:
        raise WebError("unreadable", f"no secure connection: {_brief(error)}") from error
    except (exceptions.LocationValueError, ValueError) as error:
        raise WebError("unreadable", f"not a url that can be asked: {_brief(error)}") from error
    except (exceptions.HTTPError, OSError) as error:
        if any(isinstance(cause, IncompleteRead) for cause in (error, *error.args)):
            raise WebError("truncated", f"the connection ended early: {_brief(error)}", passes=True) from error
        raise WebError("unreadable", f"no whole answer: {_brief(error)}", passes=True) from error


def _request(url: str, headers: dict[str, str], deadline: float) -> BaseHTTPResponse:
    from urllib3 import Timeout

    left_s = max(0.001, deadline - time.monotonic())
    return _pool(_proxy(url)).request(
        "GET",
        url,
        headers={"User-Agent": f"clipbatch/{__version__}", "Accept-Encoding": "identity", **headers},
        preload_content=False,
        redirect=False,
        retries=False,
        timeout=Timeout(connect=min(CONNECT_S, left_s), read=min(SILENCE_S, left_s)),
    )


@functools.lru_cache
def _pool(proxy: str | None) -> PoolManager:
    from urllib3 import PoolManager, ProxyManager

    how: dict[str, Any] = {"num_pools": CONNECTIONS, "maxsize": CONNECTIONS}
    return ProxyManager(proxy, **how) if proxy else PoolManager(**how)


def _proxy(url: str) -> str | None:
    """The proxy for `url`, by the environment."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _redirected(url: str, location: str, allowed: Allowed) -> str:
    found = urljoin(url, location)
    if urlsplit(found).scheme not in ("http", "https"):
        raise WebError("unreadable", f"redirected to {found!r}, which is not on the web")
    if not allowed(found):
        raise WebError("unreadable", f"redirected out of --root, to {found!r}")
    return found


def _refusal(response: BaseHTTPResponse) -> WebError:
    text = f"the server says {response.status} {response.reason or ''}".rstrip()
    if response.status in _GONE:
        return WebError("missing", text)
    asked_s = _seconds(response.headers.get("Retry-After", ""))
    return WebError("unreadable", text, passes=response.status in _PASSING, retry_after_s=asked_s)


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds from now; 0 for none and for nonsense."""
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
