"""The file system and path of a url: pyarrow's own for s3:// and gs://, fsspec's for a few other schemes.

The part after `scheme://` is taken verbatim, as in `aws s3 ls`: nothing is percent-decoded, and `?` and `#` are
characters of a key. Credentials come from the usual environment of each store: AWS_* and ~/.aws, instance roles,
GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN. Slow imports are made on first use.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from clipbatch.errors import InputError
from clipbatch.storage import http
from clipbatch.storage.failures import RemoteError, first_line, of_text
from clipbatch.storage.retries import forget_hosts, patiently

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs


CONNECT_S = 5.0
# A request that receives no byte for so long has failed.
ANSWER_S = 20.0
# Tries of a request that lists or writes, by the store's own client. Reads are tried once, and `retries` tries again.
ATTEMPTS = 8
# Connections to a store at the same time.
CONNECTIONS = 256
# Time limit of one read by range from a web server.
READ_S = 60.0
_REGION_S = 10.0
_COPY_S = 3600.0
_CHUNK_BYTES = 4 * 2**20
_MAX_BYTES = 2**63
_REFUSAL_S = 5.0

_S3 = ("s3", "s3a")
_NATIVE = (*_S3, "gs", "gcs")
# Scheme -> package that fsspec needs for it. Other schemes of fsspec can chain file systems and expand templates, and a
# manifest may come from a stranger, so they are refused.
_BY_FSSPEC = {
    "hf": "huggingface_hub",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "oss": "ossfs",
    "sftp": "paramiko",
}
_WEB = ("http", "https")
# Content-Encoding -> pyarrow's name of the codec.
_CODECS = {"gzip": "gzip", "x-gzip": "gzip", "br": "brotli", "zstd": "zstd"}
ODD_KEY = (
    "S3's client cannot ask for a key with an empty part, '.' or '..' (as in a//b, ./a, ../a): copy the object to "
    "another key"
)

_WORDS = re.compile(
    r"(?:Unable to parse ExceptionName: |AWS Error )(\w+)(?: Message:| during \w+ operation:) ?(?!Unable)(.*)"
)
_ARCHIVED = (
    "the store knows the object and does not hand it out: if it is archived (GLACIER, DEEP_ARCHIVE), restore it first, "
    "then --retry-bad; else you may lack the right to the key that it is encrypted with"
)

_opened: dict[tuple[str, str, bool], pafs.FileSystem] = {}
_opening: defaultdict[tuple[str, str, bool], threading.Lock] = defaultdict(threading.Lock)
_refusals: dict[str, tuple[float, RemoteError | None]] = {}


def forget() -> None:
    """Open stores again from now on, and know nothing of their hosts, for a process whose environment has changed."""
    _opened.clear()
    _refusals.clear()
    forget_hosts()


def scheme_of(url: str) -> str:
    """`s3` for s3://bucket/key; '' for a path."""
    scheme, mark, _ = url.partition("://")
    return scheme.lower() if mark else ""


def is_web(url: str) -> bool:
    """Whether `url` belongs to a web server, which cannot list folders."""
    return scheme_of(url) in _WEB


def is_odd_key(url: str) -> bool:
    """Whether S3's client cannot ask for the key in `url` (`ODD_KEY`): it resolves these parts as a browser does, and
    would ask for another object."""
    if scheme_of(url) not in _S3:
        return False
    parts = url.partition("://")[2].rstrip("/").split("/")[1:]
    return any(part in ("", ".", "..") for part in parts)


def open_store(url: str, *, once: bool = False) -> tuple[pafs.FileSystem, str]:
    """The file system of `url`, the same object for the same bucket or host, and the path in it without a trailing
    slash. Asks the network at most for the region of a bucket. once: its client makes one try of each request.

    Raises: InputError for a scheme that is unknown, cannot list (http), or needs a package that is not installed.
    """
    scheme, place = scheme_of(url), url.partition("://")[2]
    host = place.partition("/")[0]
    if scheme not in _NATIVE and scheme not in _BY_FSSPEC:
        known = ", ".join(sorted((*_NATIVE, *_BY_FSSPEC)))
        raise InputError(f"{url!r} is in no store that clipbatch knows: use one of {known}, or copy it to a disk")
    if not host:
        raise InputError(f"{url!r} names no bucket: write {scheme}://BUCKET/PATH")
    key = scheme, host, once and scheme in _S3
    with _opening[key]:  # one lock per bucket, so one that does not answer delays no other
        store = _opened.get(key)
        if store is None:
            is_gcs = scheme in ("gs", "gcs")
            store = _s3(host, key[2]) if scheme in _S3 else _gcs() if is_gcs else _by_fsspec(scheme, url)
            _opened[key] = store
    if scheme in _NATIVE:
        return store, place.rstrip("/")
    return store, store.handler.fs._strip_protocol(url).rstrip("/")


def open_input_file(url: str) -> pa.NativeFile:
    """Open the object at `url`, of a store or the web, for reads at any position. Tries once.

    Raises: InputError as `open_store`; OSError where it cannot be opened; ValueError for an `ODD_KEY`.
    """
    if is_web(url):
        import pyarrow as pa

        return pa.PythonFile(http.RangeFile(url, timeout_s=READ_S), mode="r")
    if is_odd_key(url):
        raise ValueError(ODD_KEY)
    store, path = open_store(url, once=True)
    return store.open_input_file(path)


class Ranges:
    """The object at `url`, of a store or the web, read by many threads at a time. Each read is one request, which is
    tried again."""

    def __init__(self, url: str) -> None:
        """Raises: InputError as `open_store`; OSError; ValueError for an `ODD_KEY`."""
        self._url = url
        self._read: Callable[[int, int], Any]
        self.size = patiently(self._open, url)

    def _open(self) -> int:
        url = self._url
        if is_web(url):
            resource = http.RangeFile(url, timeout_s=READ_S)
            self._read = resource.read_at
            return resource.size
        if scheme_of(url) in _NATIVE:
            file = open_input_file(url)
            self._read = lambda start, length: file.read_at(length, start)
            return int(file.size())
        store, path = open_store(url)
        files = store.handler.fs
        self._read = lambda start, length: files.cat_file(path, start=start, end=start + length)
        return int(files.size(path))

    def read_at(self, start: int, length: int) -> bytearray:
        """Read bytes [start, start + length), fewer where the object ends before. Raises: OSError."""
        length = max(0, min(length, self.size - start))
        data = patiently(lambda: self._read(start, length), self._url) if length else bytearray()
        return data if isinstance(data, bytearray) else bytearray(data)


def chunks(url: str) -> Iterator[bytes]:
    """The content of the object at `url`, of a store or the web, from its beginning. Raises: as `open_input_file`."""
    import pyarrow as pa

    if is_web(url):
        yield from http.chunks(url, max_bytes=_MAX_BYTES, timeout_s=_COPY_S)
        return
    with open_input_file(url) as file:
        codec = (
            None if url.lower().endswith((".gz", ".zst")) else content_codec(file)
        )  # these are decoded by their name
        stream = file if codec is None else pa.CompressedInputStream(file, codec)
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def content_codec(file: pa.NativeFile) -> str | None:
    """pyarrow's name of the Content-Encoding of `file`, an object of a store; None where it has none, or where its
    bytes are not what the header says."""
    codec = None
    with contextlib.suppress(NotImplementedError, OSError):  # fsspec's files have no metadata
        headers = {str(name).lower(): value for name, value in (file.metadata() or {}).items()}
        codec = _CODECS.get(headers.get("content-encoding", b"").decode("latin-1").rpartition(",")[2].strip().lower())
    if codec is None or (codec == "gzip" and file.read_at(2, 0) != b"\x1f\x8b"):
        return None
    return codec


def explained(error: RemoteError, url: str) -> RemoteError:
    """`error` of a read of `url`, with the store's own words where it refuses the credentials.

    The answer to a HEAD request has no body, so it says 400 or 403 and no more. A request that lists gets the reason.
    """
    if error.cause != "access" or scheme_of(url) not in _S3:
        return error
    bucket = f"{scheme_of(url)}://{url.partition('://')[2].partition('/')[0]}"
    with _opening[bucket, "", True]:
        asked, refusal = _refusals.get(bucket, (-_REFUSAL_S, None))
        if time.monotonic() - asked >= _REFUSAL_S:
            refusal = _refusal(bucket)
            _refusals[bucket] = time.monotonic(), refusal
    if refusal is not None:
        return refusal
    # GetObject is refused although the HEAD request before it was allowed.
    if re.search(r"(ACCESS_DENIED|INVALID_OBJECT_STATE|\[code 136\]) during GetObject", str(error)):
        return RemoteError("unreadable", f"{error}; {_ARCHIVED}")
    return error


def _refusal(bucket: str) -> RemoteError | None:
    """Why `bucket` refuses the credentials themselves; None where it does not."""
    from pyarrow.fs import FileSelector

    store, path = open_store(bucket, once=True)
    try:
        store.get_file_info(FileSelector(f"{path}/clipbatch-asks-for-nothing", allow_not_found=True))
    except OSError as error:
        text = first_line(error)
        if of_text(text).cause == "credentials":
            words = _WORDS.search(text)
            what = f"{words[1]}: {words[2]}" if words else text
            return RemoteError("unreadable", f"the store refuses the credentials: {what}", cause="credentials")
    return None


def _s3(bucket: str, once: bool) -> pafs.FileSystem:
    import pyarrow as pa
    import pyarrow.fs as pafs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not endpoint:
        region = _region(bucket) or region
    if pa.io_thread_count() < CONNECTIONS:
        pa.set_io_thread_count(CONNECTIONS)  # the client keeps so many connections, and makes other requests wait
    return pafs.S3FileSystem(
        endpoint_override=endpoint or None,
        region=region,
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=0 if once else ATTEMPTS - 1),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,
        allow_delayed_open=True,  # a small object is one PUT
    )


def _region(bucket: str) -> str | None:
    """The region of `bucket`; None where nobody answers soon, as behind a firewall."""
    from pyarrow.fs import resolve_s3_region

    regions: list[str] = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            regions.append(resolve_s3_region(bucket))

    thread = threading.Thread(target=ask, name="region", daemon=True)
    thread.start()
    thread.join(_REGION_S)
    return regions[0] if regions else None


def _gcs() -> pafs.FileSystem:
    import pyarrow.fs as pafs

    return pafs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=READ_S))


def _by_fsspec(scheme: str, url: str) -> pafs.FileSystem:
    import fsspec
    import pyarrow.fs as pafs

    try:
        files, _ = fsspec.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"{url!r} needs a package that is not installed ({error}): pip install {_BY_FSSPEC[scheme]}"
        ) from error
    except (OSError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"cannot reach the store of {url!r}: {cause}; check the url, the network and the credentials"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(files))
