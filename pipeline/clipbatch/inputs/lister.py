"""A table's columns as the listing needs them: names as uris, and which others go on to the output.

The listing's own columns, and Arrow batches of names.
"""

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
# What a column of images' names is called.
NAMES = ("uri", "url", "image_uri", "image_url", "file", "filename", "file_name", "image", "img", "key", *_PATHS)


def is_text_type(kind: pa.DataType) -> bool:
    """Whether the values of type `kind` are text, also where they are encoded as a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary_type(kind: pa.DataType) -> bool:
    """Whether the values of type `kind` are bytes of any length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are bytes of any length, or hold some."""
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    return is_binary_type(kind) or any(holds_bytes(kind.field(at).type) for at in range(kind.num_fields))


def notes_on_bytes(text: str, schema: pa.Schema, fields: Sequence[pa.Field], without: Sequence[str]) -> dict[str, int]:
    """What is to be said of the columns of the table `text` that hold bytes and are not among `fields`."""
    kept = {*without, *(field.name for field in fields)}
    left = [field.name for field in schema if holds_bytes(field.type) and field.name not in kept]
    return {f"(column {name!r} of {text} holds bytes, which only --columns carries)": 1 for name in left}


def bytes_carried(text: str, carried: Sequence[tuple[pa.Field, pa.Array]]) -> dict[str, int]:
    """What is to be said of columns that hold bytes and are carried: how many."""
    return {
        f"(bytes of column {field.name!r} of {text} that go into manifest and parts)": values.nbytes
        for field, values in carried
        if holds_bytes(field.type)
    }


def chosen(text: str, schema: pa.Schema, columns: Sequence[str] | None, without: Sequence[str]) -> list[pa.Field]:
    """The fields of the table `text` that are carried through: those named `columns`, or all but `without` and those
    that hold bytes.

    Raises: InputError for a name that is not there, and for a type that Parquet cannot hold.
    """
    there = set(schema.names)
    for name in columns or ():
        if name not in there:
            raise InputError(
                f"{text} has no column {name!r} as --columns names it: it has {', '.join(schema.names)}"
                f".{nearest(name, schema.names)}"
            )
    wanted = set(columns) if columns is not None else {f.name for f in schema if not holds_bytes(f.type)}
    fields = [f for f in schema if f.name in wanted.difference(without)]
    if _refused_by_parquet(fields):
        for field in fields:
            if error := _refused_by_parquet([field]):
                raise InputError(
                    f"column {field.name!r} of {text} is {field.type}, which Parquet cannot hold: leave it out by "
                    "--columns"
                ) from error
    return fields


def _refused_by_parquet(fields: list[pa.Field]) -> Exception | None:
    """Why a file with these columns cannot be written, or not be read again, as when they are nested too deep."""
    sink = pa.BufferOutputStream()
    try:
        with pq.ParquetWriter(sink, pa.schema(fields)):
            pass
        pq.read_schema(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowException, OSError) as error:
        return error
    return None


def only_once(text: str, names: Sequence[str]) -> None:
    """Raises: InputError where two columns of the table `text` have the same name."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"{text} has more than one column {twice[0]!r}: name every column differently")


def uri_column(text: str, schema: pa.Schema, wanted: str | None, *, any_type: bool = False) -> str:
    """`wanted`, if it is a column of the table `text` that may name images. any_type: whatever its type is.

    Raises: InputError with the columns that there are.
    """
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is None:
        raise InputError(
            f"which column of {text} names the images? It has {there}: say it with --uri-column, or with "
            "--image-column if one holds the images themselves"
        )
    kind = types_of(schema, [wanted])[wanted]
    if kind is None:
        near = nearest(wanted, schema.names)
        raise InputError(f"{text} has no column {wanted!r} as --uri-column names it: it has {there}.{near}")
    if not (any_type or is_text_type(kind) or is_binary_type(kind)):
        raise InputError(f"column {wanted!r} of {text} is {kind}, no text: name another one with --uri-column")
    return wanted


def types_of(schema: pa.Schema, names: Iterable[str]) -> dict[str, pa.DataType | None]:
    """The type of each column or, where a name is `column.field`, of the struct's field; None where there is none."""
    columns = dict(zip(schema.names, schema.types, strict=True))
    found = {}
    for name in names:
        column, _, field = name.partition(".")
        kind = columns.get(name)
        if kind is None and (struct := columns.get(column)) is not None and pa.types.is_struct(struct):
            kind = struct.field(field).type if struct.get_field_index(field) >= 0 else None
        found[name] = kind
    return found


def uris(names: pa.Array, root: str) -> pa.Array:
    """`names`, text or bytes, as uris; an empty one for null, which is a row without an image."""
    names = names.fill_null("" if is_text_type(names.type) else b"")
    if uri_of("x", root) == "x":
        with contextlib.suppress(pa.ArrowInvalid):  # some are not UTF-8
            return names.cast(pa.string())
    return pa.array([uri_of(os.fsdecode(name), root) if name else "" for name in names.to_pylist()], pa.string())


BATCH_ROWS = 65_536
# Of one image's name: sixteen times the longest path that Linux opens.
MAX_NAME_BYTES = 2**16
# Of one image as a data URI, which stands in manifest and parts where a name does.
MAX_DATA_URI_BYTES = 2**20
# Of a name, which tell a data URI.
_HEAD_BYTES = 200
SPAN = pa.struct([("container", pa.string()), ("start", pa.int64()), ("length", pa.int64()), ("method", pa.string())])
# Columns that every lister's batches begin with. `span`: the container of an image that is no file of its own, and
# where it stands there (`types.Span`); null for a file.
LISTED = pa.schema([("uri", pa.string()), ("root", pa.dictionary(pa.int32(), pa.string())), ("span", SPAN)])


def check_names(names: pa.Array, where: Callable[[int], str], before: int = 0) -> None:
    """names: text or bytes, null for none; `before` rows came before them. where: the place of a row, in words, by its
    number among all.

    Raises: InputError for a name of more than `MAX_NAME_BYTES`, and for a data URI of more than `MAX_DATA_URI_BYTES`.
    """
    sizes = pc.binary_length(names)
    longest = pc.max(sizes).as_py()
    if longest is None or longest <= MAX_NAME_BYTES:
        return
    for row in pc.indices_nonzero(pc.greater(sizes, MAX_NAME_BYTES)).to_pylist():
        size, most = sizes[row].as_py(), most_bytes(bytes(memoryview(names[row].as_buffer())[:_HEAD_BYTES]))
        if size > most:
            what, remedy = "name", "mend it, or leave it out"
            if most == MAX_DATA_URI_BYTES:
                what, remedy = "data URI", "keep the image in a file, or in a column of bytes"
            raise InputError(f"{where(before + row)} has a {what} of {size} bytes, and {most} are the most: {remedy}")


def most_bytes(name: bytes) -> int:
    """How many bytes a name that begins like `name` may have."""
    return MAX_DATA_URI_BYTES if is_data_uri(name[:_HEAD_BYTES].decode("latin-1")) else MAX_NAME_BYTES


def row_of(text: str, row: int) -> str:
    """The place of a row of the input `text`, in words."""
    return f"row {row} (from 0) of {text}"


def batch(names: list[str], root: str) -> pa.RecordBatch:
    """Rows for files `names`, which may hold surrogates in place of bytes that are not UTF-8."""
    try:
        root.encode()
        uris = pa.array(names, pa.string())
    except UnicodeEncodeError:
        uris = pa.array([uri_of(name, root) for name in names], pa.string())
        root = uri_root(root)
    return listed(uris, root)


def uri_root(root: str) -> str:
    """What rows have as their root: `root`, or `/` where it is not UTF-8 and their uris are `file://` ones."""
    return root if is_text(root) else "/"


def listed(
    uris: pa.Array, root: str, span: pa.Array | None = None, carried: Sequence[tuple[pa.Field, pa.Array]] = ()
) -> pa.RecordBatch:
    """Rows for `uris`, all with the same root, with the carried columns after the listing's own."""
    roots = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(uris)), [root])
    columns = [uris, roots, pa.nulls(len(uris), SPAN) if span is None else span, *(values for _, values in carried)]
    return pa.record_batch(columns, schema=pa.schema([*LISTED, *(field for field, _ in carried)]))


class Lister(Protocol):
    """One input of a run."""

    # As it was given.
    text: str
    # Files that were not taken, by suffix; complete when `batches` has ended.
    passed_over: Counter[str]

    def __init__(self, text: str, settings: SourceSettings) -> None: ...

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        """Whether `text`, an argument of the command line, is of this lister's kind."""

    def identity(self) -> str:
        """What makes it the same input again: its place, and a digest where it is a file of names."""

    def fields(self) -> list[pa.Field]:
        """The columns of the input that are carried through to the output."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in an order that depends on the input alone: `rows.LISTED`, then `fields`."""
