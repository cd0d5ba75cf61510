"""Write a Parquet file row group by row group, with a checksum, and publish it when it is complete.

Spark 4 cannot infer a schema from a file with float16 columns (PARQUET_TYPE_ILLEGAL). If a footer has a schema under
Spark's own key, Spark uses that one. So files with float16 get such a schema, without the float16 columns. Other files
get none, and Spark infers the schema.

This module does not know what the columns mean.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.rundir.checksum import ChecksumWriter
from clipbatch.storage.atomic import publish
from clipbatch.storage.paths import AnyPath

_KEY = "org.apache.spark.sql.parquet.row.metadata"
_NAMES = {
    pa.bool_(): "boolean",
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.uint8(): "short",
    pa.uint16(): "integer",
    pa.uint32(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "binary",
    pa.large_binary(): "binary",
    pa.date32(): "date",
}


def footer(schema: pa.Schema) -> dict[str, str]:
    """Metadata to add to the footer of a file of `schema`, for Spark. Omits columns for which Spark has no type."""
    if not any(_holds_half(field.type) for field in schema):
        return {}
    fields = [_field(field.name, kind) for field in schema if (kind := _type(field.type)) is not None]
    return {_KEY: json.dumps({"type": "struct", "fields": fields})}


def _holds_half(kind: pa.DataType) -> bool:
    return pa.types.is_float16(kind) or any(_holds_half(kind.field(n).type) for n in range(kind.num_fields))


def _field(name: str, kind: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": True, "metadata": {}}


def _type(kind: pa.DataType) -> Any:
    """Spark's type for `kind`, as JSON; None if it has none. `kind` may be the type of a column of the user's table."""
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _type(kind.value_type)
        return inner and {"type": "array", "elementType": inner, "containsNull": True}
    if pa.types.is_struct(kind):
        inner = [(field.name, _type(field.type)) for field in kind]
        known = [_field(name, spark_type) for name, spark_type in inner if spark_type is not None]
        return {"type": "struct", "fields": known} if known else None
    if pa.types.is_decimal128(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind) and kind.unit in ("ms", "us"):
        return "timestamp" if kind.tz else "timestamp_ntz"
    return _NAMES.get(kind)


# Size of a row group's scores and embeddings in memory. A reader processes one at a time, and a writer buffers one.
_ROW_GROUP_BYTES = 2**26
# A row group has at least this many rows, however wide they are.
_MIN_ROWS = 1024


def rows_per_group(row_bytes: int) -> int:
    """How many rows a row group has. row_bytes: size of a row in memory."""
    return max(_MIN_ROWS, _ROW_GROUP_BYTES // row_bytes)


class PartFile:
    """A Parquet file to write. Use it as a context manager. Unless `close` is called, no file remains at the end."""

    def __init__(self, path: AnyPath, schema: pa.Schema, compression: str) -> None:
        """schema: its metadata are written to the footer.

        Raises: InputError if the file cannot be written. So do the other methods.
        """
        self._closed = False
        schema = schema.with_metadata({**(schema.metadata or {}), **footer(schema)})
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(publish(path))
        self._sink = ChecksumWriter(self._file)
        self._writer = pq.ParquetWriter(self._sink, schema, **options(schema, compression))

    def write(self, table: pa.Table) -> None:
        """Write `table` as one row group."""
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self, footer: Mapping[str, str], check: Callable[[Any], None] | None = None) -> None:
        """Add `footer` to the metadata, write the checksum and publish the file.

        check: called with the finished file, as an argument for pyarrow, before it is published. If it raises, the file
        is not published.
        """
        self._writer.add_key_value_metadata(dict(footer))
        self._sink.hold()
        self._writer.close()
        self._sink.finish()
        if check:
            self._file.flush()
            check(pa.BufferReader(self._file.getvalue()) if isinstance(self._file, io.BytesIO) else self._file.name)
        self._closed = True
        self._stack.close()

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        self._sink.hold()  # the writer's footer goes to memory and is dropped
        with contextlib.suppress(Exception):
            self._writer.close()
        if error is None:
            error = _AbandonedError()
            with contextlib.suppress(_AbandonedError):
                self._stack.__exit__(_AbandonedError, error, None)
        else:
            self._stack.__exit__(kind, error, trace)


class _AbandonedError(Exception):
    """Tells `publish` to remove a file that was not closed."""


def options(schema: pa.Schema, compression: str) -> dict[str, Any]:
    """Options of pyarrow's writer for a file of `schema`.

    Floats are stored without encoding. Dictionaries do not help with scores. BYTE_STREAM_SPLIT would save 9%, but many
    readers in use do not support it. `benchmarks/results/2026-11-23-write.md` has the figures.
    """
    leaves = list(_leaves(schema))
    return {
        "compression": compression,
        "use_dictionary": [
            path for path, kind in leaves if not pa.types.is_floating(kind) and path not in ("row_id", "uri")
        ],
        "write_statistics": [path for path, _ in leaves if "." not in path],  # useless for elements of lists
        "write_page_checksum": True,
    }


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """Path and type of each Parquet column of `schema`."""
    for field in schema:
        yield from _below(field.name, field.type)


def _below(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _below(f"{path}.{field.name}", field.type)
    elif pa.types.is_map(kind):
        yield from _below(f"{path}.key_value.key", kind.key_type)
        yield from _below(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _below(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind
