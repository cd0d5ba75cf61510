"""Which file system and path a url means: s3:// and gs:// by pyarrow itself, a few other schemes by fsspec.

What follows `scheme://` is taken verbatim, as in `aws s3 ls`: nothing is percent-decoded, and `?` and `#` are
characters of a key. Credentials come from the usual environment of each store: AWS_* and ~/.aws, instance roles,
GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN. Knows nothing of images. All imports that cost time are made on first use.
"""

from __future__ import annotations

import datetime
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from clipbatch.errors import InputError
from clipbatch.storage import http

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs


CONNECT_S = 5.0
ANSWER_S = 20.0
"""Without a byte for so long, a request counts as failed."""
ATTEMPTS = 3
"""Of a request, by the store's own client, with its own back-off."""
CONNECTIONS = 256
"""To a store at the same time."""
_REGION_S = 10.0
_COPY_S = 3600.0
_CHUNK_BYTES = 4 * 2**20
_MAX_BYTES = 2**63

_NATIVE = ("s3", "s3a", "gs", "gcs")
_BY_FSSPEC = {
    "hf": "huggingface_hub",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "oss": "ossfs",
    "sftp": "paramiko",
}
"""Scheme -> package that fsspec needs for it. No other: what fsspec knows beside them can chain file systems and
expand templates, and a manifest may be a stranger's."""
_WEB = ("http", "https")

_opened: dict[tuple[str, str], pafs.FileSystem] = {}
_opening: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)


def forget() -> None:
    """Open stores again from now on, for a process whose environment has changed."""
    _opened.clear()


def scheme_of(url: str) -> str:
    """`s3` for s3://bucket/key; '' where `url` is none."""
    scheme, mark, _ = url.partition("://")
    return scheme.lower() if mark else ""


def is_web(url: str) -> bool:
    """Whether `url` is a web server's, which lists nothing."""
    return scheme_of(url) in _WEB


def open_store(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of `url`, the same object for the same bucket or host, and the path in it without a trailing
    slash. Asks the network at most for the region of a bucket.

    Raises: InputError for a scheme that is not known, that lists nothing (http), or whose package is missing.
    """
    scheme, place = scheme_of(url), url.partition("://")[2]
    host = place.partition("/")[0]
    if scheme not in _NATIVE and scheme not in _BY_FSSPEC:
        known = ", ".join(sorted((*_NATIVE, *_BY_FSSPEC)))
        raise InputError(f"{url!r} is in no store that clipbatch knows: use one of {known}, or copy it to a disk")
    if not host:
        raise InputError(f"{url!r} names no bucket: write {scheme}://BUCKET/PATH")
    with _opening[scheme, host]:  # one that does not answer holds up nobody else
        store = _opened.get((scheme, host))
        if store is None:
            store = _opened[scheme, host] = _make(scheme, host, url)
    if scheme in _NATIVE:
        return store, place.rstrip("/")
    return store, store.handler.fs._strip_protocol(url).rstrip("/")


def open_input_file(url: str) -> pa.NativeFile:
    """The object at `url`, of a store or of the web, for reads anywhere in it.

    Raises: InputError as `open_store`; OSError where it cannot be opened.
    """
    if is_web(url):
        import pyarrow as pa

        return pa.PythonFile(http.RangeFile(url, timeout_s=ATTEMPTS * ANSWER_S), mode="r")
    store, path = open_store(url)
    return store.open_input_file(path)


class Ranges:
    """The object at `url`, of a store or of the web, for many threads at a time; each read is a request of its own."""

    def __init__(self, url: str) -> None:
        """Raises: as `open_input_file`; what fsspec's file systems raise is of any kind."""
        self._read: Callable[[int, int], Any]
        if is_web(url):
            resource = http.RangeFile(url, timeout_s=ATTEMPTS * ANSWER_S)
            self.size, self._read = resource.size, resource.read_at
        elif scheme_of(url) in _NATIVE:
            file = open_input_file(url)
            self.size, self._read = file.size(), lambda start, length: file.read_at(length, start)
        else:
            store, path = open_store(url)
            found = store.handler.fs
            self.size = int(found.size(path))
            self._read = lambda start, length: found.cat_file(path, start=start, end=start + length)

    def read_at(self, start: int, length: int) -> bytearray:
        """Bytes [start, start + length), fewer where the object ends before. Raises: as `__init__`."""
        length = max(0, min(length, self.size - start))
        data = self._read(start, length) if length else bytearray()
        return data if isinstance(data, bytearray) else bytearray(data)


def chunks(url: str) -> Iterator[bytes]:
    """The object at `url`, of a store or of the web, from its beginning. Raises: as `open_input_file`."""
    if is_web(url):
        yield from http.chunks(url, max_bytes=_MAX_BYTES, timeout_s=_COPY_S)
        return
    with open_input_file(url) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _make(scheme: str, host: str, url: str) -> pafs.FileSystem:
    if scheme in ("s3", "s3a"):
        return _s3(host)
    if scheme in ("gs", "gcs"):
        return _gcs()
    return _by_fsspec(scheme, url)


def _s3(bucket: str) -> pafs.FileSystem:
    import pyarrow as pa
    import pyarrow.fs as pafs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not endpoint:
        region = _region(bucket) or region
    if pa.io_thread_count() < CONNECTIONS:
        pa.set_io_thread_count(CONNECTIONS)  # the client keeps so many connections, and makes the others wait
    return pafs.S3FileSystem(
        endpoint_override=endpoint or None,
        region=region,
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,
        allow_delayed_open=True,  # a small object is one PUT
    )


def _region(bucket: str) -> str | None:
    """Where the bucket says that it is; None where it does not answer soon, as behind a firewall."""
    from pyarrow.fs import resolve_s3_region

    found: list[str] = []

    def ask() -> None:
        try:
            found.append(resolve_s3_region(bucket))
        except OSError:
            return

    thread = threading.Thread(target=ask, name="region", daemon=True)
    thread.start()
    thread.join(_REGION_S)
    return found[0] if found else None


def _gcs() -> pafs.FileSystem:
    import pyarrow.fs as pafs

    return pafs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=ATTEMPTS * ANSWER_S))


def _by_fsspec(scheme: str, url: str) -> pafs.FileSystem:
    import fsspec
    import pyarrow.fs as pafs

    try:
        found, _ = fsspec.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"{url!r} needs a package that is not installed ({error}): pip install {_BY_FSSPEC[scheme]}"
        ) from error
    except (OSError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"cannot reach the store of {url!r}: {cause}; check the url, the network and the credentials"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(found))
