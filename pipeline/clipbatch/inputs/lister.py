"""What all listers share: the interface `Lister`, the columns of a listing, and the choice of a table's columns."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError, nearest
from clipbatch.storage.uris import is_data_uri, is_text, uri_of

_PATHS = ("path", "filepath", "file_path", "image_path", "imagepath", "img_path", "image_file")
# Usual names of a column that names images.
NAMES = ("uri", "url", "image_uri", "image_url", "file", "filename", "file_name", "image", "img", "key", *_PATHS)

BATCH_ROWS = 65_536
# The longest name of an image, in bytes: sixteen times the longest path that Linux opens.
MAX_NAME_BYTES = 2**16
# The largest image as a data URI, in bytes. It is stored in the manifest and in the parts, as a name is.
MAX_DATA_URI_BYTES = 2**20
# How many bytes of a name we look at to recognise a data URI.
_HEAD_BYTES = 200
SPAN = pa.struct([("container", pa.string()), ("start", pa.int64()), ("length", pa.int64()), ("method", pa.string())])
# The first columns of every lister's batches. `span`: the container of an image that is not a file of its own, and
# where the image is in it (`types.Span`); null for a file.
LISTED = pa.schema([("uri", pa.string()), ("root", pa.dictionary(pa.int32(), pa.string())), ("span", SPAN)])


def is_text_type(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are text, also if they are encoded as a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary_type(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are bytes of any length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are bytes of any length, or contain such bytes."""
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    return is_binary_type(kind) or any(holds_bytes(kind.field(at).type) for at in range(kind.num_fields))


def notes_on_binary_columns(
    text: str, schema: pa.Schema, fields: Sequence[pa.Field], without: Sequence[str]
) -> dict[str, int]:
    """Notes for the user: the columns of the table `text` that hold bytes and are neither in `fields` nor `without`."""
    known = {*without, *(field.name for field in fields)}
    omitted = [field.name for field in schema if holds_bytes(field.type) and field.name not in known]
    return {f"(column {name!r} of {text} holds bytes, which only --columns carries)": 1 for name in omitted}


def binary_sizes(text: str, carried: Sequence[tuple[pa.Field, pa.Array]]) -> dict[str, int]:
    """Notes for the user: the size in bytes of each copied column of the table `text` that holds bytes."""
    return {
        f"(bytes of column {field.name!r} of {text} that go into manifest and parts)": values.nbytes
        for field, values in carried
        if holds_bytes(field.type)
    }


def carried_fields(
    text: str, schema: pa.Schema, columns: Sequence[str] | None, without: Sequence[str], also: Sequence[str] = ()
) -> list[pa.Field]:
    """The columns of the table `text` to copy to the output, without those in `without`.

    columns: names of the columns to copy; None: all that do not hold bytes. also: further names, if they exist.
    Raises: InputError if a column does not exist, or has a type that Parquet cannot hold.
    """
    for name in columns or ():
        if name not in schema.names:
            raise InputError(
                f"{text} has no column {name!r}, which --columns names: it has {', '.join(schema.names)}"
                f".{nearest(name, schema.names)}"
            )
    wanted = set(columns) if columns is not None else {f.name for f in schema if not holds_bytes(f.type)}
    fields = [f for f in schema if f.name in wanted.union(also).difference(without)]
    if _refused_by_parquet(fields):
        for field in fields:
            if error := _refused_by_parquet([field]):
                raise InputError(
                    f"column {field.name!r} of {text} is {field.type}, which Parquet cannot hold: leave it out with "
                    "--columns"
                ) from error
    return fields


def _refused_by_parquet(fields: list[pa.Field]) -> Exception | None:
    """Why a file with these columns cannot be written or read, for example since they are nested too deeply."""
    sink = pa.BufferOutputStream()
    try:
        with pq.ParquetWriter(sink, pa.schema(fields)):
            pass
        pq.read_schema(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowException, OSError) as error:
        return error
    return None


def check_unique_names(text: str, names: Sequence[str]) -> None:
    """Raises: InputError if two columns of the table `text` have the same name."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(f"{text} has more than one column {repeated[0]!r}: give every column a name of its own")


def uri_column(text: str, schema: pa.Schema, wanted: str | None, *, any_type: bool = False) -> str:
    """Return `wanted` if it is a column of the table `text` that can name images. any_type: accept any type.

    Raises: InputError with the existing columns.
    """
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is None:
        raise InputError(
            f"which column of {text} names the images? It has {columns}: name it with --uri-column, or with "
            "--image-column if one holds the images themselves"
        )
    kind = types_of(schema, [wanted])[wanted]
    if kind is None:
        near = nearest(wanted, schema.names)
        raise InputError(f"{text} has no column {wanted!r}, which --uri-column names: it has {columns}.{near}")
    if not (any_type or is_text_type(kind) or is_binary_type(kind)):
        raise InputError(f"column {wanted!r} of {text} is {kind}, not text: name another one with --uri-column")
    return wanted


def types_of(schema: pa.Schema, names: Iterable[str]) -> dict[str, pa.DataType | None]:
    """The type of each column, or of a struct's field if a name is `column.field`; None if it does not exist."""
    columns = dict(zip(schema.names, schema.types, strict=True))
    types = {}
    for name in names:
        column, _, field = name.partition(".")
        kind = columns.get(name)
        if kind is None and (struct := columns.get(column)) is not None and pa.types.is_struct(struct):
            kind = struct.field(field).type if struct.get_field_index(field) >= 0 else None
        types[name] = kind
    return types


def uris(names: pa.Array, root: str) -> pa.Array:
    """Convert `names`, text or bytes, to uris. Null becomes an empty uri: a row without an image."""
    names = names.fill_null("" if is_text_type(names.type) else b"")
    if uri_of("x", root) == "x":
        with contextlib.suppress(pa.ArrowInvalid):  # some are not UTF-8
            return names.cast(pa.string())
    return pa.array([uri_of(os.fsdecode(name), root) if name else "" for name in names.to_pylist()], pa.string())


def check_names(names: pa.Array, where: Callable[[int], str], before: int = 0) -> None:
    """Raises: InputError for a name longer than `MAX_NAME_BYTES`, and a data URI longer than `MAX_DATA_URI_BYTES`.

    names: text or bytes, with nulls. before: number of rows before these. where: returns, for the number of a row, its
    place in words.
    """
    sizes = pc.binary_length(names)
    longest = pc.max(sizes).as_py()
    if longest is None or longest <= MAX_NAME_BYTES:
        return
    for row in pc.indices_nonzero(pc.greater(sizes, MAX_NAME_BYTES)).to_pylist():
        size, limit = sizes[row].as_py(), max_name_bytes(bytes(memoryview(names[row].as_buffer())[:_HEAD_BYTES]))
        if size > limit:
            what, remedy = "name", "correct it, or leave the row out"
            if limit == MAX_DATA_URI_BYTES:
                what, remedy = "data URI", "keep the image in a file, or in a column of bytes"
            raise InputError(f"{where(before + row)} has a {what} of {size} bytes, and the limit is {limit}: {remedy}")


def max_name_bytes(name: bytes) -> int:
    """The longest name, in bytes, that may begin like `name`: data URIs may be longer than other names."""
    return MAX_DATA_URI_BYTES if is_data_uri(name[:_HEAD_BYTES].decode("latin-1")) else MAX_NAME_BYTES


def row_place(text: str, row: int) -> str:
    """The place of a row of the input `text`, for messages."""
    return f"row {row} (from 0) of {text}"


def file_rows(names: list[str], root: str, carried: Sequence[tuple[pa.Field, pa.Array]] = ()) -> pa.RecordBatch:
    """Rows for files. In `names`, surrogates stand for bytes that are not UTF-8. carried: as in `uri_rows`."""
    try:
        root.encode()
        uris = pa.array(names, pa.string())
    except UnicodeEncodeError:
        uris = pa.array([uri_of(name, root) for name in names], pa.string())
        root = uri_root(root)
    return uri_rows(uris, root, None, carried)


def uri_root(root: str) -> str:
    """The root to record for rows: `root`, or `/` if it is not UTF-8. Then the uris are absolute `file://` ones."""
    return root if is_text(root) else "/"


def uri_rows(
    uris: pa.Array, root: str, span: pa.Array | None = None, carried: Sequence[tuple[pa.Field, pa.Array]] = ()
) -> pa.RecordBatch:
    """Rows for `uris` with one root. carried: the columns copied from the input, which follow the listing's own."""
    roots = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(uris)), [root])
    columns = [uris, roots, pa.nulls(len(uris), SPAN) if span is None else span, *(values for _, values in carried)]
    return pa.record_batch(columns, schema=pa.schema([*LISTED, *(field for field, _ in carried)]))


class Lister(Protocol):
    """One input of a run."""

    # The input, as the user wrote it.
    text: str
    # Number of files that were left out, by suffix, and notes for the user in parentheses. Complete after `batches`.
    passed_over: Counter[str]

    @property
    def incomplete(self) -> Sequence[str]:
        """The places in the input that could not be listed as a whole. Complete after `batches`."""

    def __init__(self, text: str, settings: SourceSettings) -> None: ...

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        """Whether this lister can list the input `text`."""

    def identity(self) -> str:
        """A string that is equal for equal inputs: where the input is, and a digest if it is a file of names."""

    def fields(self) -> list[pa.Field]:
        """The columns of the input to copy to the output."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, with the columns `LISTED` and then `fields`. Only the input decides their order."""
