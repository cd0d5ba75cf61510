"""Read the rows of one column of a table of images forwards, a few at a time. The caller holds a lock.

Memory never holds a whole file or row group. Row groups without a wanted row are skipped. Inside of a row group, the
pages before a row have to be read, since Parquet readers cannot skip them. Local Arrow files are mapped into memory, so
only the wanted images are read, unless the file is compressed: then whole record batches are decompressed. Remote files
are read by ranges, some of them ahead.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from clipbatch.storage.ranges import ReadAhead
from clipbatch.storage.tables import arrow_batches, open_parquet
from clipbatch.storage.uris import is_url, name_of

_PIECE_BYTES = 2**20
_MAX_ROWS = 1024
_ARROW_ROWS = 32
_NO_END = 2**62
# The fields of a struct that are used; it may have others.
_FIELDS = ("bytes", "path")
# A row that is less than this ahead is reached by reading on, since the rows before it will be asked for too; for one
# that is further ahead the stream jumps. Of the rows that a jump has to read, this much is kept.
_NEAR_BYTES = 128 * 2**20


@dataclass(slots=True, kw_only=True)
class Piece:
    """Consecutive rows that have been read."""

    start: int
    # Bytes, or null.
    images: pa.Array
    paths: pa.Array | None
    # How many of its rows nobody has taken yet.
    left: int
    bytes: int


class ChangedError(Exception):
    """The size of the remote table is not the one that it had when it was listed."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class RowStream:
    """`column` of the table at `path`."""

    def __init__(self, path: str, column: str, size: int) -> None:
        """size: bytes of the file when it was listed."""
        self._path, self._column, self._size = path, column, size
        self._far: ReadAhead | None = None
        self._rows: _Rows | None = None
        self._ahead: Iterator[pa.Array] | None = None
        # The next row to read.
        self._end = 0
        # First and last of the rows that cannot be read, and why.
        self._broken = (0, -1, "")
        self._starts: list[int] = []
        # By first row, the pieces that have not been taken entirely, the oldest first.
        self.pieces: dict[int, Piece] = {}
        self.waiting_bytes = 0

    @property
    def is_open(self) -> bool:
        return self._rows is not None

    def close(self) -> None:
        """Close the file. The pieces are kept, and `read_on` opens the file again."""
        if self._far is not None:
            self._far.close()
        self._rows = self._ahead = self._far = None

    def piece(self, row: int) -> Piece | None:
        """The piece that contains `row`; None where it has not been read."""
        at = bisect.bisect_right(self._starts, row) - 1
        piece = self.pieces[self._starts[at]] if at >= 0 else None
        return piece if piece is not None and row < piece.start + len(piece.images) else None

    def take(self, piece: Piece) -> None:
        """Count one row of `piece` as taken. The piece is dropped with its last row."""
        piece.left -= 1
        if not piece.left:
            self._drop(piece)

    def drop_oldest(self) -> int:
        """Drop the oldest piece; returns its bytes."""
        piece = next(iter(self.pieces.values()))
        self._drop(piece)
        return piece.bytes

    def read_on(self, row: int) -> None:
        """Read the next piece on the way to `row`. Where the row is behind or far ahead, jump and read up to it.

        Raises: OSError, ArrowException where it cannot be read; LookupError where there is no such row; ChangedError.
        """
        first, last, why = self._broken
        if first <= row <= last:
            raise pa.ArrowInvalid(why)
        try:
            rows = self._rows = self._rows or self._opened()
            near = 0 <= (row - self._end) * rows.row_bytes <= _NEAR_BYTES and row >= self._end
            if self._ahead is not None and near:
                self._keep(self._next(row))
            else:
                self._jump(rows, row)
        except (pa.ArrowException, OSError) as error:
            opened, lost = self._rows, self._far.lost if self._far is not None else None
            self.close()
            if lost is not None:
                raise lost from error
            if isinstance(error, OSError) and (error.errno or (opened is None and is_url(self._path))):
                raise
            damaged = pa.ArrowInvalid(str(error))
            if opened is None:
                raise damaged from error
            self._broken = (self._end, opened.group(self._end)[1] - 1, str(error))
            if self._end <= row <= self._broken[1]:
                raise damaged from error
            return
        if self._end == rows.count:
            self.close()

    def _opened(self) -> _Rows:
        if is_url(self._path):
            self._far = ReadAhead(self._path)
            if self._far.size != self._size:
                raise ChangedError(self._far.size)
        kind = _Parquet if name_of(self._path).lower().endswith(".parquet") else _Arrow
        return kind(self._path, self._column, self._far)

    def _jump(self, rows: _Rows, row: int) -> None:
        start = rows.group(row)[0]
        if self._ahead is None or not start <= self._end <= row:
            self._end, self._ahead = start, rows.read_from(row)
        kept: collections.deque[Piece] = collections.deque()
        kept_bytes = 0
        while self._end <= row:
            kept.append(self._next(row))
            kept_bytes += kept[-1].bytes
            while kept_bytes > _NEAR_BYTES and len(kept) > 1:
                kept_bytes -= kept.popleft().bytes
        for piece in kept:
            self._keep(piece)

    def _next(self, row: int) -> Piece:
        assert self._ahead is not None
        images = next(self._ahead, None)
        if images is None:
            self.close()
            raise IndexError(f"it has {self._end} rows, and no row {row}")
        paths = None
        if pa.types.is_struct(images.type):
            inside = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
            images, paths = inside["bytes"], inside.get("path")
        piece = Piece(start=self._end, images=images, paths=paths, left=len(images), bytes=images.nbytes)
        self._end += len(images)
        return piece

    def _keep(self, piece: Piece) -> None:
        if piece.start not in self.pieces:
            self.pieces[piece.start] = piece
            bisect.insort(self._starts, piece.start)
            self.waiting_bytes += piece.bytes

    def _drop(self, piece: Piece) -> None:
        del self.pieces[piece.start]
        del self._starts[bisect.bisect_left(self._starts, piece.start)]
        self.waiting_bytes -= piece.bytes


class _Rows(Protocol):
    """An open file."""

    # Number of rows; None where it is known only at the end of the file.
    count: int | None
    # Mean bytes of a row; 0 where skipping a row costs nothing.
    row_bytes: float

    def group(self, row: int) -> tuple[int, int]:
        """The range of rows that are read, or lost, together with `row`: the first one, and the one after the last."""

    def read_from(self, row: int) -> Iterator[pa.Array]:
        """Yield the rows from the beginning of the group of `row` to the end, a few at a time."""


class _Parquet:
    def __init__(self, path: str, column: str, far: ReadAhead | None) -> None:
        self._file = open_parquet(path, far)
        metadata = self._file.metadata
        kind = self._file.schema_arrow.field(column).type
        fields = [field.name for field in kind if field.name in _FIELDS] if pa.types.is_struct(kind) else []
        self._columns = [f"{column}.{name}" for name in fields] or [column]
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self._starts = [0, *(int(start) for start in np.cumsum([group.num_rows for group in groups]))]
        self.count: int | None = metadata.num_rows
        chunks = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        wanted = [chunk for chunk in chunks if chunk.path_in_schema in self._columns]
        self.row_bytes = sum(chunk.total_uncompressed_size for chunk in wanted) / max(1, metadata.num_rows)

    def group(self, row: int) -> tuple[int, int]:
        at = bisect.bisect_right(self._starts, row)
        if at == len(self._starts):
            raise IndexError(f"it has {self._starts[-1]} rows, and no row {row}")
        return self._starts[at - 1], self._starts[at]

    def read_from(self, row: int) -> Iterator[pa.Array]:
        size = max(1, min(_MAX_ROWS, int(_PIECE_BYTES / max(1.0, self.row_bytes))))
        for group in range(bisect.bisect_right(self._starts, row) - 1, self._file.num_row_groups):
            for batch in self._file.iter_batches(size, row_groups=[group], columns=self._columns, use_threads=False):
                yield batch.column(0)


class _Arrow:
    def __init__(self, path: str, column: str, far: ReadAhead | None) -> None:
        self._path, self._column, self._far = path, column, far
        self.count: int | None = None
        self.row_bytes = 0.0

    def group(self, row: int) -> tuple[int, int]:
        return 0, _NO_END

    def read_from(self, row: int) -> Iterator[pa.Array]:
        for batch in arrow_batches(self._path, [self._column], self._far):
            column = batch.column(self._column)
            for start in range(0, len(column), _ARROW_ROWS):
                yield column.slice(start, _ARROW_ROWS)
