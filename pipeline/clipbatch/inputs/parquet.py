"""Parquet and Arrow files (Feather too) as typed tables, read a batch at a time and only the columns asked for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.errors import InputError
from clipbatch.inputs.lister import BATCH_ROWS, only_once, row_of, types_of
from clipbatch.inputs.opening import refused, unreadable
from clipbatch.storage.tables import arrow_batches, open_arrow, open_file, open_parquet
from clipbatch.storage.uris import is_url

# Files whose schemas are asked for at the same time.
_AT_ONCE = 16
# Row groups of a file in a store whose columns, without the images, are asked for at the same time.
_GROUPS_AT_ONCE = 32


class ColumnarFiles:
    """One table in files whose columns have types that go together."""

    def __init__(self, paths: Sequence[str], suffix: str) -> None:
        """Raises: InputError for a file that is damaged, and where types do not go together."""
        self.paths, self._open = paths, _parquet if suffix == ".parquet" else _arrow
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="schemas") as pool:
            schemas = list(pool.map(lambda path: schema_of(path, suffix), paths))
        self._schema = _unified(paths, schemas)

    def schema(self) -> pa.Schema:
        return self._schema

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns`; of a struct also one field, as `image.path`. Raises: InputError as `__init__`."""
        for path in self.paths:
            yield from self.batches_of(path, columns, verbatim)

    def where(self, row: int) -> str:
        """The place of a row, counted from 0 through all files."""
        for path in self.paths:
            rows = sum(batch.num_rows for batch in self.batches_of(path, []))
            if row < rows:
                return row_of(path, row)
            row -= rows
        return f"a row of {', '.join(self.paths)}"

    def batches_of(self, path: str, columns: list[str], verbatim: str = "") -> Iterator[pa.RecordBatch]:
        """The rows of one file with `columns`; none: batches with nothing but their number of rows."""
        types = types_of(self._schema, columns)
        fields = [pa.field(name, pa.binary() if name == verbatim else types[name]) for name in columns]
        with refusing(path):
            for batch in self._open(path, columns):
                there = dict(zip(batch.schema.names, batch.columns, strict=True))
                arrays = [_picked(path, there, len(batch), field) for field in fields]
                yield pa.record_batch(arrays, schema=pa.schema(fields)) if arrays else batch


def schema_of(path: str, suffix: str) -> pa.Schema:
    """The columns of a file. Raises: InputError where it is damaged or not of its suffix's format."""
    return far_schema(path, suffix) if is_url(path) else _schema_of(path, suffix)


@functools.lru_cache(maxsize=10_000)
def far_schema(path: str, suffix: str) -> pa.Schema:
    """`schema_of` a file in a store or on the web, asked for once until the next listing begins."""
    return _schema_of(path, suffix)


def _schema_of(path: str, suffix: str) -> pa.Schema:
    with refusing(path):
        if suffix == ".parquet":
            return open_parquet(path).schema_arrow.remove_metadata()
        return open_arrow(path)[0].schema.remove_metadata()


@contextlib.contextmanager
def refusing(path: str) -> Iterator[None]:
    """Make an InputError of what goes wrong with the file at `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what fsspec's file systems raise is of any kind
        if is_url(path):
            raise refused(f"read the table {path}", error) from error
        if isinstance(error, (OSError, pa.ArrowException)):
            raise unreadable(path, error) from error
        raise


def _parquet(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        there = [name for name, kind in types_of(file.schema_arrow, columns).items() if kind is not None]
        groups = range(file.num_row_groups)
        if there and is_url(path):
            with pq.ParquetFile(open_file(path), metadata=file.metadata, pre_buffer=True) as far:  # all ranges at once
                for first in groups[::_GROUPS_AT_ONCE]:
                    some = groups[first : first + _GROUPS_AT_ONCE]
                    yield from far.iter_batches(BATCH_ROWS, row_groups=list(some), columns=there)
            return
        if there:
            yield from file.iter_batches(BATCH_ROWS, columns=there)
            return
        for start in range(0, rows := file.metadata.num_rows, BATCH_ROWS):
            yield pa.RecordBatch.from_struct_array(pa.nulls(min(BATCH_ROWS, rows - start), pa.struct([])))


def _arrow(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    names = set(open_arrow(path)[0].schema.names)
    there = list(dict.fromkeys(n if n in names else n.partition(".")[0] for n in columns))
    for batch in arrow_batches(path, [name for name in there if name in names]):
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _picked(path: str, there: dict[str, pa.Array], rows: int, field: pa.Field) -> pa.Array:
    """The column, or the field of one, in the type of `field`. Raises: InputError for text that is not UTF-8."""
    column, _, inside = field.name.partition(".")
    if field.name in there:
        values = there[field.name]
    elif column in there:
        values = pc.struct_field(there[column], inside)
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
            f"column {field.name!r} of {path} is damaged: {error}; mend it, or leave it out with --columns"
        ) from error
    return values


def _unified(paths: Sequence[str], schemas: list[pa.Schema]) -> pa.Schema:
    made = pa.schema([])
    for path, schema in zip(paths, schemas, strict=True):
        only_once(path, schema.names)
        try:
            made = pa.unify_schemas([made, _wide(schema)], promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(
                f"a column of {path} does not go with the files before it: {error}; label them in runs of their own"
            ) from error
    return made


def _wide(schema: pa.Schema) -> pa.Schema:
    """`schema` with dictionaries that have room for the words of all files together."""
    kinds = [pa.dictionary(pa.int32(), f.type.value_type) if pa.types.is_dictionary(f.type) else f.type for f in schema]
    return pa.schema(zip(schema.names, kinds, strict=True))
