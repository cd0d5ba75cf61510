"""Parquet and Arrow files (also Feather) as typed tables. Reads some rows at a time, and only the columns needed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.errors import InputError
from clipbatch.inputs.lister import BATCH_ROWS, check_unique_names, row_place, types_of
from clipbatch.inputs.opening import store_error, unreadable
from clipbatch.storage.tables import arrow_batches, open_arrow, open_file, open_parquet
from clipbatch.storage.uris import is_url

# How many files we read the schema of at the same time.
_MAX_READS = 16
# How many row groups of a remote file we request at the same time. The columns requested do not hold images.
_GROUPS_PER_REQUEST = 32


class ColumnarFiles:
    """One table in several files whose columns have compatible types."""

    def __init__(self, paths: Sequence[str], suffix: str) -> None:
        """Raises: InputError if a file is damaged, or the types of the files are not compatible."""
        self.paths, self._open = paths, _parquet if suffix == ".parquet" else _arrow
        with ThreadPoolExecutor(_MAX_READS, thread_name_prefix="schemas") as pool:
            schemas = list(pool.map(lambda path: schema_of(path, suffix), paths))
        self._schema = _unify(paths, schemas)

    def schema(self) -> pa.Schema:
        return self._schema

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns`. A name may be a field of a struct, as `image.path`. Raises: as `__init__`."""
        for path in self.paths:
            yield from self.batches_of(path, columns, verbatim)

    def where(self, row: int) -> str:
        """File and number of a row, for messages. row: its number, from 0, across all files."""
        for path in self.paths:
            rows = sum(batch.num_rows for batch in self.batches_of(path, []))
            if row < rows:
                return row_place(path, row)
            row -= rows
        return f"a row of {', '.join(self.paths)}"

    def batches_of(self, path: str, columns: list[str], verbatim: str = "") -> Iterator[pa.RecordBatch]:
        """The rows of one file with `columns`. Without columns, the batches have nothing but a number of rows."""
        types = types_of(self._schema, columns)
        fields = [pa.field(name, pa.binary() if name == verbatim else types[name]) for name in columns]
        with input_errors(path):
            for batch in self._open(path, columns):
                present = dict(zip(batch.schema.names, batch.columns, strict=True))
                arrays = [_column(path, present, len(batch), field) for field in fields]
                yield pa.record_batch(arrays, schema=pa.schema(fields)) if arrays else batch


def schema_of(path: str, suffix: str) -> pa.Schema:
    """The columns of a file. Raises: InputError if it is damaged, or its format is not the one of its suffix."""
    return remote_schema(path, suffix) if is_url(path) else _schema_of(path, suffix)


@functools.lru_cache(maxsize=10_000)
def remote_schema(path: str, suffix: str) -> pa.Schema:
    """`schema_of` a file in a store or on the web. Cached until the next listing begins."""
    return _schema_of(path, suffix)


def _schema_of(path: str, suffix: str) -> pa.Schema:
    with input_errors(path):
        if suffix == ".parquet":
            return open_parquet(path).schema_arrow.remove_metadata()
        return open_arrow(path)[0].schema.remove_metadata()


@contextlib.contextmanager
def input_errors(path: str) -> Iterator[None]:
    """Turn errors of reading the file `path` into InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # fsspec's file systems raise all kinds of exceptions
        if is_url(path):
            raise store_error(f"read the table {path}", error) from error
        if isinstance(error, (OSError, pa.ArrowException)):
            raise unreadable(path, error) from error
        raise


def _parquet(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        present = [name for name, kind in types_of(file.schema_arrow, columns).items() if kind is not None]
        groups = range(file.num_row_groups)
        if present and is_url(path):
            # pre_buffer requests all byte ranges at the same time
            with pq.ParquetFile(open_file(path), metadata=file.metadata, pre_buffer=True) as remote:
                for first in groups[::_GROUPS_PER_REQUEST]:
                    some = groups[first : first + _GROUPS_PER_REQUEST]
                    yield from remote.iter_batches(BATCH_ROWS, row_groups=list(some), columns=present)
            return
        if present:
            yield from file.iter_batches(BATCH_ROWS, columns=present)
            return
        for start in range(0, rows := file.metadata.num_rows, BATCH_ROWS):
            yield pa.RecordBatch.from_struct_array(pa.nulls(min(BATCH_ROWS, rows - start), pa.struct([])))


def _arrow(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    names = set(open_arrow(path)[0].schema.names)
    outer = dict.fromkeys(n if n in names else n.partition(".")[0] for n in columns)
    for batch in arrow_batches(path, [name for name in outer if name in names]):
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _column(path: str, present: dict[str, pa.Array], rows: int, field: pa.Field) -> pa.Array:
    """A column, or a struct's field, in the type of `field`; nulls if the file lacks it.

    present: the columns read. Raises: InputError for text that is not UTF-8.
    """
    column, _, inner = field.name.partition(".")
    if field.name in present:
        values = present[field.name]
    elif column in present:
        values = pc.struct_field(present[column], inner)
    else:
        return pa.nulls(rows, field.type)
    if pa.types.is_dictionary(values.type) and not pa.types.is_dictionary(field.type):
        values = values.dictionary_decode()
    if values.type != field.type:
        values = values.cast(field.type)
    try:
        values.validate(full=field.type != pa.binary())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"column {field.name!r} of {path} is damaged: {error}; repair the file, or leave the column out with "
            "--columns"
        ) from error
    return values


def _unify(paths: Sequence[str], schemas: list[pa.Schema]) -> pa.Schema:
    unified = pa.schema([])
    for path, schema in zip(paths, schemas, strict=True):
        check_unique_names(path, schema.names)
        try:
            unified = pa.unify_schemas([unified, _with_wide_dictionaries(schema)], promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(
                f"the type of a column of {path} does not match the files before it: {error}; label them in separate "
                "runs"
            ) from error
    return unified


def _with_wide_dictionaries(schema: pa.Schema) -> pa.Schema:
    """`schema` with 32-bit dictionary indices, which have room for the values of all files together."""
    kinds = [pa.dictionary(pa.int32(), f.type.value_type) if pa.types.is_dictionary(f.type) else f.type for f in schema]
    return pa.schema(zip(schema.names, kinds, strict=True))
