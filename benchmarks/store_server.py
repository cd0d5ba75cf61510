"""A server that speaks enough of S3 for a run directory.

A folder is its bucket, `bucket`. It waits before every answer, as if it were far away. The server that the tests use
takes 0.6 s of its own for each thousand names that it lists, which would hide what is to be measured.
"""

from __future__ import annotations

import io
import os
import time
import uuid
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PAGE = 1000
_XML = '<?xml version="1.0" encoding="UTF-8"?>'
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def _unframed(file: IO[bytes]) -> bytes:
    """The pieces of a body, each after a line with its size in hexadecimal; trailing headers are read and dropped."""
    pieces = []
    while size := int(file.readline().partition(b";")[0], 16):
        pieces.append(file.read(size))
        file.readline()
    while file.readline().strip():
        pass
    return b"".join(pieces)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.delay_s = root, delay_s
        # Of listings under way, by prefix; and the pieces of uploads, by id.
        self.listed: dict[str, list[str]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_HEAD(self) -> None:
        self._object(with_body=False)

    def do_GET(self) -> None:
        if "list-type" in self._query():
            self._list()
        else:
            self._object(with_body=True)

    def do_PUT(self) -> None:
        data, query = self._body(), self._query()
        if "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = data
        elif not self._path().is_dir():  # clients make a folder by an object whose name ends with a slash
            self._path().write_bytes(data)
        self._answer(200, b"", ETag='"0"')

    def do_POST(self) -> None:
        self._body()
        query = self._query()
        if "uploadId" in query:
            pieces = self.server.uploads.pop(query["uploadId"])
            self._path().write_bytes(b"".join(pieces[number] for number in sorted(pieces)))
            body = f"{_XML}<CompleteMultipartUploadResult {_NAMESPACE}><ETag>0</ETag></CompleteMultipartUploadResult>"
        else:
            number = uuid.uuid4().hex
            self.server.uploads[number] = {}
            body = f"<UploadId>{number}</UploadId>"
            body = f"{_XML}<InitiateMultipartUploadResult {_NAMESPACE}>{body}</InitiateMultipartUploadResult>"
        self._answer(200, body.encode())

    def do_DELETE(self) -> None:
        self._path().unlink(missing_ok=True)
        self._answer(204, b"")

    def _list(self) -> None:
        query = self._query()
        prefix, first = query.get("prefix", ""), int(query.get("continuation-token", 0))
        folder = self.server.root / prefix
        if not first or prefix not in self.server.listed:
            is_folder = folder.is_dir() and (not prefix or prefix.endswith("/"))
            self.server.listed[prefix] = sorted(os.listdir(folder)) if is_folder else []
        names = self.server.listed[prefix]
        page = names[first : first + _PAGE]
        more = f"<NextContinuationToken>{first + _PAGE}</NextContinuationToken>" if first + _PAGE < len(names) else ""
        entries = "".join(self._entry(folder / name, escape(prefix + name)) for name in page)
        truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated><KeyCount>{len(page)}</KeyCount>"
        self._answer(
            200, f"{_XML}<ListBucketResult {_NAMESPACE}>{truncated}{more}{entries}</ListBucketResult>".encode()
        )

    def _entry(self, path: Path, key: str) -> str:
        stat = path.stat()
        if path.is_dir():
            return f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>"
        written = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
        return f"<Contents><Key>{key}</Key><LastModified>{written}</LastModified><Size>{stat.st_size}</Size></Contents>"

    def _object(self, *, with_body: bool) -> None:
        path = self._path()
        if not path.is_file():
            return self._answer(404, b"")
        first, last = 0, path.stat().st_size - 1
        written = formatdate(path.stat().st_mtime, usegmt=True)
        if wanted := self.headers.get("Range"):
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(last, int(stop or last))
        data = path.read_bytes()[first : last + 1] if with_body else b""
        where = {"Content_Range": f"bytes {first}-{last}/{path.stat().st_size}"} if wanted else {}
        length = last + 1 - first
        self._answer(206 if wanted else 200, data, length, ETag='"0"', Last_Modified=written, **where)

    def _answer(self, code: int, body: bytes, length: int | None = None, **headers: str) -> None:
        time.sleep(self.server.delay_s)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        """What the client sends, without the frames that HTTP, and its library for checksums, put around pieces."""
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = _unframed(self.rfile)
        return _unframed(io.BytesIO(data)) if "x-amz-decoded-content-length" in self.headers else data

    def _query(self) -> dict[str, str]:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in query.items()}

    def _path(self) -> Path:
        return self.server.root / unquote(urlsplit(self.path).path).removeprefix("/bucket").lstrip("/")

    def log_message(self, *args: object) -> None:
        pass


def serve(folder: str, delay_s: str) -> None:
    """Serve `folder` as the bucket until the process ends, and print the port."""
    server = Server(Path(folder), float(delay_s))
    print(server.server_port, flush=True)
    server.serve_forever()
