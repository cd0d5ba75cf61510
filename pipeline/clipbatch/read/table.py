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

from clipbatch.read.files import read_file
from clipbatch.read.rowstream import Piece, RowStream
from clipbatch.types import Encoded, Reject, Span
from clipbatch.uris import is_outside

COLUMN = "column:"
_WAITING_BYTES = 256 * 2**20
_WAIT_S = 0.05
_OPEN_FILES = 8


class ReadTable:
    """Called by many threads at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._streams: dict[tuple[str, str], RowStream] = {}
        self._changed = threading.Condition()
        """Held while a stream is used; notified when rows were taken from it."""

    def __call__(self, path: str, span: Span) -> Encoded | Reject:
        """The image in a row of the table at `path`. Raises: OSError where the file cannot be had."""
        size = os.stat(path).st_size
        if size != span.length:
            error = f"the table has changed since it was listed: it has {size} bytes and had {span.length}"
            return Reject(status="truncated" if size < span.length else "unreadable", error=error)
        try:
            piece = self._piece((path, span.method.removeprefix(COLUMN)), span.start)
        except (pa.ArrowException, LookupError) as error:
            return Reject(status="unreadable", error=f"the table is damaged: {str(error).splitlines()[0]}")
        at = span.start - piece.start
        image = piece.images[at].as_buffer()
        if image is None and piece.paths is not None and (name := piece.paths[at].as_py()):
            return self._beside(path, name)
        if image is None:
            return Reject(status="missing", error="null in the table")
        if image.size == 0:
            return Reject(status="empty", error="0 bytes")
        if image.size > self._max_bytes:
            return Reject(status="too_large", error=f"{image.size} bytes, over the limit of {self._max_bytes}")
        return Encoded(data=bytearray(image))

    def _beside(self, table: str, name: str) -> Encoded | Reject:
        """The file that a row without bytes names."""
        folder = os.path.dirname(os.path.abspath(table))
        path = os.path.join(folder, name)
        if is_outside(path, folder):
            return Reject(status="unreadable", error="null in the table, and its path leads out of the table's folder")
        return read_file(path, self._max_bytes)

    def _piece(self, key: tuple[str, str], row: int) -> Piece:
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

    def _stream(self, key: tuple[str, str]) -> RowStream:
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
