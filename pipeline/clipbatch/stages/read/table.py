"""The bytes of one row of a table of images, taken from a stream over its file.

Rows are asked for in the order of the table, by threads that overtake one another a little. So a file is read once,
forwards, and a row that was read waits until its thread comes for it. What waits is bounded by bytes: a thread that is
far ahead waits for those behind, and where none of them comes, the oldest rows are given up; whoever wants one of these
after all makes the stream begin again. Knows nothing of the formats, which are `rowstream`'s.
"""

from __future__ import annotations

import os
import threading

import pyarrow as pa

from clipbatch.errors import InputError
from clipbatch.stages.read.named import base64_kind, read_data_uri
from clipbatch.stages.read.openers import read_file, read_remote
from clipbatch.stages.read.row_stream import ChangedError, Piece, RowStream
from clipbatch.storage.uris import folder_of, is_data_uri, is_outside, is_url, path_of
from clipbatch.types import Encoded, Item, Reject, Span

COLUMN = "column:"
_WAITING_BYTES = 256 * 2**20
_WAIT_S = 0.05
_OPEN_FILES = 8
_BASE64_BYTES = 120
"""Of an image, by which its base64 text is told from it."""

_Key = tuple[str, str, int]
"""Path, column, and size when it was listed."""


class ReadTable:
    """Called by many threads at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._streams: dict[_Key, RowStream] = {}
        self._changed = threading.Condition()
        """Held while a stream is used; notified when rows were taken from it."""

    def __call__(self, path: str, span: Span, timeout_s: float) -> Encoded | Reject:
        """The image in a row of the table at `path`, a path or url. timeout_s: for a web server's answer, where the row
        names a file in place of an image. Raises: OSError where the file cannot be had.
        """
        if not is_url(path) and (size := os.stat(path).st_size) != span.length:
            return _changed(size, span)
        try:
            piece = self._piece((path, span.method.removeprefix(COLUMN), span.length), span.start)
        except ChangedError as error:
            return _changed(error.size, span)
        except InputError as error:  # a store that this machine lacks the package for
            return Reject(status="unreadable", error=str(error))
        except (pa.ArrowException, LookupError) as error:
            return Reject(status="unreadable", error=f"the table is damaged: {str(error).splitlines()[0]}")
        at = span.start - piece.start
        image = piece.images[at].as_buffer()
        name = piece.paths[at].as_py() if image is None and piece.paths is not None else None
        if name and isinstance(name, str):
            return self._beside(path, name, timeout_s)
        if image is None:
            return Reject(status="missing", error="null in the table")
        if image.size == 0:
            return Reject(status="empty", error="0 bytes")
        if image.size > self._max_bytes:
            return Reject(status="too_large", error=f"{image.size} bytes, over the limit of {self._max_bytes}")
        if kind := base64_kind(bytes(memoryview(image)[:_BASE64_BYTES]).decode("latin-1")):
            return Reject(status="unsupported", error=f"base64 text of an image ({kind}), not its bytes: decode it")
        return Encoded(data=bytearray(image))

    def _beside(self, table: str, name: str, timeout_s: float) -> Encoded | Reject:
        """The file that a row without bytes names."""
        folder = folder_of(table)
        path = path_of(name, folder)
        if is_outside(path, folder):
            return Reject(status="unreadable", error="null in the table, and its path leads out of the table's folder")
        if is_url(path):
            return read_remote(Item(row_id=0, uri=name, path=path, fence=folder), self._max_bytes, timeout_s)
        return (read_data_uri if is_data_uri(path) else read_file)(path, self._max_bytes)

    def _piece(self, key: _Key, row: int) -> Piece:
        """The piece with `row`, which counts as taken."""
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
                    self._give_up(waiting_bytes - _WAITING_BYTES // 2)

    def _stream(self, key: _Key) -> RowStream:
        stream = self._streams.get(key)
        if stream is None:
            begun = [other for other in self._streams.values() if other.is_open]
            for other in begun[: len(begun) - _OPEN_FILES + 1]:
                other.close()
            stream = self._streams[key] = RowStream(*key)
        return stream

    def _give_up(self, surplus: int) -> None:
        """Forget the oldest rows that wait, at least `surplus` bytes of them."""
        for key, stream in list(self._streams.items()):
            while surplus > 0 and stream.pieces:
                surplus -= stream.forget_oldest()
            if not (stream.is_open or stream.pieces):
                del self._streams[key]


def _changed(size: int, span: Span) -> Reject:
    error = f"the table has changed since it was listed: it has {size} bytes and had {span.length}"
    return Reject(status="truncated" if size < span.length else "unreadable", error=error)
