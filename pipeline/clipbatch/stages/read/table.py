"""Read the bytes of one row of a table of images from a stream over its file.

Many threads ask for rows, nearly in the order of the table. So a file is read once, forwards, and a row that has been
read is kept until its thread asks for it. The kept rows have a limit in bytes. A thread that is far ahead waits for the
others; if none of them asks for a row, the oldest rows are dropped, and a thread that wants one of these later makes
the stream start again. `row_stream` knows the file formats.
"""

from __future__ import annotations

import os
import threading

import pyarrow as pa

from clipbatch.errors import InputError
from clipbatch.stages.read.named import base64_kind, read_data_uri
from clipbatch.stages.read.openers import read_file, read_remote
from clipbatch.stages.read.row_stream import ChangedError, Piece, RowStream
from clipbatch.storage.retries import Clock
from clipbatch.storage.uris import folder_of, is_data_uri, is_outside, is_url, path_of
from clipbatch.types import Encoded, Item, Reject, Span

COLUMN = "column:"
_WAITING_BYTES = 256 * 2**20
_WAIT_S = 0.05
_OPEN_FILES = 8
# Bytes at the beginning of an image that show whether it is base64 text.
_BASE64_BYTES = 120

# Path, column, and the file's size when it was listed.
_Key = tuple[str, str, int]


class ReadTable:
    """Called by many threads at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._streams: dict[_Key, RowStream] = {}
        # Held while a stream is used; notified when rows have been taken from it.
        self._changed = threading.Condition()

    def __call__(self, path: str, span: Span, clock: Clock) -> Encoded | Reject:
        """The image in a row of the table at `path`, a path or url.

        clock: the time limit of a web server's answer, where the row names a file and holds no image.
        Raises: OSError where the file cannot be read.
        """
        if not is_url(path) and (size := os.stat(path).st_size) != span.length:
            return _changed(size, span)
        try:
            piece = self._piece((path, span.method.removeprefix(COLUMN), span.length), span.start)
        except ChangedError as error:
            return _changed(error.size, span)
        except InputError as error:  # the store needs a package that is not installed
            return Reject(status="unreadable", error=str(error))
        except (pa.ArrowException, LookupError) as error:
            return Reject(status="unreadable", error=f"the table is damaged: {str(error).splitlines()[0]}")
        at = span.start - piece.start
        image = piece.images[at].as_buffer()
        name = piece.paths[at].as_py() if image is None and piece.paths is not None else None
        if name and isinstance(name, str):
            return self._named_file(path, name, clock)
        if image is None:
            return Reject(status="missing", error="null in the table")
        if image.size == 0:
            return Reject(status="empty", error="0 bytes")
        if image.size > self._max_bytes:
            return Reject(status="too_large", error=f"{image.size} bytes, over the limit of {self._max_bytes}")
        if kind := base64_kind(bytes(memoryview(image)[:_BASE64_BYTES]).decode("latin-1")):
            return Reject(status="unsupported", error=f"base64 text of an image ({kind}), not its bytes: decode it")
        return Encoded(data=bytearray(image))

    def _named_file(self, table: str, name: str, clock: Clock) -> Encoded | Reject:
        """The file that a row without bytes names."""
        folder = folder_of(table)
        path = path_of(name, folder)
        if is_outside(path, folder):
            return Reject(status="unreadable", error="null in the table, and its path leads out of the table's folder")
        if is_url(path):
            return read_remote(Item(row_id=0, uri=name, path=path, fence=folder), self._max_bytes, clock)
        return (read_data_uri if is_data_uri(path) else read_file)(path, self._max_bytes)

    def _piece(self, key: _Key, row: int) -> Piece:
        """The piece that contains `row`, which counts as taken from it."""
        with self._changed:
            while True:
                stream = self._stream(key)
                piece = stream.piece(row)
                if piece is not None:
                    stream.take(piece)
                    if not piece.left:
                        self._changed.notify_all()
                    if not (stream.is_open or stream.pieces):
                        del self._streams[key]
                    return piece
                waiting_bytes = sum(other.waiting_bytes for other in self._streams.values())
                if waiting_bytes <= _WAITING_BYTES:
                    stream.read_on(row)
                elif not self._changed.wait(_WAIT_S):
                    self._drop(waiting_bytes - _WAITING_BYTES // 2)

    def _stream(self, key: _Key) -> RowStream:
        stream = self._streams.get(key)
        if stream is None:
            opened = [other for other in self._streams.values() if other.is_open]
            for other in opened[: len(opened) - _OPEN_FILES + 1]:
                other.close()
            stream = self._streams[key] = RowStream(*key)
        return stream

    def _drop(self, surplus: int) -> None:
        """Drop the oldest of the rows that are kept, at least `surplus` bytes of them."""
        for key, stream in list(self._streams.items()):
            while surplus > 0 and stream.pieces:
                surplus -= stream.drop_oldest()
            if not (stream.is_open or stream.pieces):
                del self._streams[key]


def _changed(size: int, span: Span) -> Reject:
    error = f"the table has changed since it was listed: it has {size} bytes and had {span.length}"
    return Reject(status="truncated" if size < span.length else "unreadable", error=error)
