"""Open Parquet and Arrow files, local or remote, so that only what is asked for is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from clipbatch.storage.ranges import ReadAhead, open_ranged
from clipbatch.storage.uris import is_url

# Read at a time from a Parquet column. Without a buffer, or with pre_buffer, a whole row group is read at once.
_BUFFER_BYTES = 2**20
_FILE_MAGIC = b"ARROW1"
_FEATHER_1 = b"FEA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_file(path: str) -> pa.NativeFile:
    """Open the table's file at `path`, a path or url. Raises: OSError; InputError for a url of an unknown store."""
    return open_ranged(path) if is_url(path) else pa.OSFile(os.fsencode(path))


def open_parquet(path: str, far: ReadAhead | None = None) -> pq.ParquetFile:
    """far: read this instead of the file at `path`. Raises: as `open_file`; ArrowInvalid."""
    file = open_file(path) if far is None else pa.PythonFile(far, mode="r")
    return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def open_arrow(
    path: str, fields: Sequence[str] | None = None, far: ReadAhead | None = None
) -> tuple[ipc.RecordBatchFileReader, bool]:
    """Open an Arrow file, mapped into memory if it is local. Returns the reader, and whether it has random access (else
    it is a stream).

    fields: read only these columns. far: as in `open_parquet`. Raises: as `open_file`; ArrowInvalid.
    """
    if far is not None:
        file = pa.PythonFile(far, mode="r")
    else:
        file = open_file(path) if is_url(path) else pa.memory_map(os.fsencode(path))
    head = file.read(len(_FILE_MAGIC))
    if head.startswith(_FEATHER_1):
        raise pa.ArrowInvalid("it is a Feather file of version 1; write it again with a newer version")
    if not head:
        raise pa.ArrowInvalid("it is empty")
    file.seek(0)
    seekable = head == _FILE_MAGIC
    if not seekable:
        file.seek(max(0, file.size() - len(_END_OF_STREAM)))
        if file.read() != _END_OF_STREAM:
            raise pa.ArrowInvalid("the Arrow stream has no end: it was cut short, or never closed")
        file.seek(0)
    kind = ipc.open_file if seekable else ipc.open_stream
    reader = kind(file)
    if fields:
        file.seek(0)
        options = ipc.IpcReadOptions(included_fields=[reader.schema.get_field_index(name) for name in fields])
        reader = kind(file, options=options)
    return reader, seekable


def arrow_batches(path: str, fields: Sequence[str], far: ReadAhead | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of a file or a stream. fields: only these columns; all of them if it is empty."""
    reader, seekable = open_arrow(path, fields, far)
    return map(reader.get_batch, range(reader.num_record_batches)) if seekable else iter(reader)
