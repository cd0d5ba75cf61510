"""Open Parquet and Arrow files so that nothing is read but what is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

_BUFFER_BYTES = 2**20
"""Read at a time from a Parquet column: without a buffer, and without pre_buffer=False, it is a whole row group."""
_FILE_MAGIC = b"ARROW1"
_FEATHER_1 = b"FEA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_parquet(path: str) -> pq.ParquetFile:
    """Raises: OSError, ArrowInvalid."""
    return pq.ParquetFile(pa.OSFile(os.fsencode(path)), buffer_size=_BUFFER_BYTES, pre_buffer=False)


def open_arrow(path: str, fields: Sequence[str] | None = None) -> tuple[ipc.RecordBatchFileReader, bool]:
    """A reader over the mapped file, and whether it has random access (else it is a stream).

    fields: only these columns, where the others would have to be decompressed. Raises: OSError, ArrowInvalid.
    """
    file = pa.memory_map(os.fsencode(path))
    head = file.read(len(_FILE_MAGIC))
    if head.startswith(_FEATHER_1):
        raise pa.ArrowInvalid("it is of Feather's first version; write it again with a newer one")
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


def arrow_batches(path: str, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The record batches of a file or a stream with only the columns `fields`, or all where it is empty."""
    reader, seekable = open_arrow(path, fields)
    return map(reader.get_batch, range(reader.num_record_batches)) if seekable else iter(reader)
