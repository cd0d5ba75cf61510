"""Open Parquet and Arrow files, on a disk or far away, so that nothing is read but what is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from clipbatch.storage.ranges import ReadAhead
from clipbatch.storage.stores import open_input_file
from clipbatch.storage.uris import is_url

_BUFFER_BYTES = 2**20
"""Read at a time from a Parquet column: without a buffer, and without pre_buffer=False, it is a whole row group."""
_FILE_MAGIC = b"ARROW1"
_FEATHER_1 = b"FEA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_file(path: str) -> pa.NativeFile:
    """The table's file at `path`, a path or url. Raises: OSError; InputError for a url of no known store."""
    return open_input_file(path) if is_url(path) else pa.OSFile(os.fsencode(path))


def open_parquet(path: str, far: ReadAhead | None = None) -> pq.ParquetFile:
    """far: what to read in place of the file at `path`. Raises: as `open_file`; ArrowInvalid."""
    file = open_file(path) if far is None else pa.PythonFile(far, mode="r")
    return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def open_arrow(
    path: str, fields: Sequence[str] | None = None, far: ReadAhead | None = None
) -> tuple[ipc.RecordBatchFileReader, bool]:
    """A reader over the file, which is mapped where it can be, and whether it has random access (else it is a stream).

    fields: only these columns, where the others would have to be read or decompressed. far: as in `open_parquet`.
    Raises: as `open_file`; ArrowInvalid.
    """
    if far is not None:
        file = pa.PythonFile(far, mode="r")
    else:
        file = open_file(path) if is_url(path) else pa.memory_map(os.fsencode(path))
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


def arrow_batches(path: str, fields: Sequence[str], far: ReadAhead | None = None) -> Iterator[pa.RecordBatch]:
    """The record batches of a file or a stream with only the columns `fields`, or all where it is empty."""
    reader, seekable = open_arrow(path, fields, far)
    return map(reader.get_batch, range(reader.num_record_batches)) if seekable else iter(reader)
