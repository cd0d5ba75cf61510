"""Tables that hold the images themselves: a column of bytes, or Hugging Face's struct of bytes and path.

Listing reads footers, the other columns, and a few images, where types and names do not say which column holds them. A
row's uri is `file.parquet#ROW`, with the row's number in the file, from 0, unless `--uri-column` names a column whose
value there is not null; a struct's path and further fields are carried through as `COLUMN_path` and so on.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError, nearest
from clipbatch.inputs.folders import root_of
from clipbatch.inputs.holding import Holdings, candidates, holdings, is_image_struct, may_hold
from clipbatch.inputs.lister import (
    NAMES,
    SPAN,
    bytes_carried,
    check_names,
    chosen,
    holds_bytes,
    is_binary_type,
    is_text_type,
    listed,
    notes_on_bytes,
    row_of,
    types_of,
    uri_column,
    uri_root,
    uris,
)
from clipbatch.inputs.opening import size_and_end
from clipbatch.inputs.parquet import ColumnarFiles, schema_of
from clipbatch.inputs.table_files import COLUMNAR, table_files
from clipbatch.inputs.table_manifest import TableManifest
from clipbatch.storage.uris import absolute, folder_of, is_data_uri, is_url, name_of, path_of, uri_of

# Files whose ends are read at the same time.
_AT_ONCE = 16
_END_BYTES, _FAR_END_BYTES = 2**20, 2**16


class ImageTable:
    """A Parquet or Arrow file, or a folder of them."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        """Raises: InputError for a damaged file."""
        self.text, self._settings = text, settings
        self.passed_over: Counter[str] = Counter()
        self._suffix, self._paths = table_files(text) or ("", [])
        self._files = ColumnarFiles(self._paths, self._suffix)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        found = table_files(text)
        if found is None or found[0] not in COLUMNAR or (settings.all_files and found[1] != [text]):
            return False
        if settings.image_column is not None:
            return settings.image_column != ""
        try:
            schema = schema_of(found[1][0], found[0])
            if settings.uri_column is None and candidates(schema):
                return True
            if not any(may_hold(field.type) for field in schema):
                return False
            held = holdings(found[1][0], found[0])
        except InputError:  # which a manifest says of it, too
            return False
        return bool(held.images or held.lists)

    def identity(self) -> str:
        """Its place, and each file's size and end; to digest all images would take as long as to label them."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ends") as pool:
            facts = "\n".join(pool.map(_end, self._paths))
        return f"{absolute(self.text)} footers-sha256:{hashlib.sha256(os.fsencode(facts)).hexdigest()}"

    def former_identity(self) -> str:
        """Its identity where an earlier version took the files that a column names for the images."""
        return TableManifest(self.text, self._settings).identity()

    @functools.cached_property
    def _image(self) -> pa.Field:
        """The column with the images. Raises: InputError where it is not exactly one."""
        schema, settings = self._files.schema(), self._settings
        if settings.image_column is not None:
            return _named(self.text, schema, settings.image_column)
        known = [field.name for field in candidates(schema)]
        others = [field.name for field in schema if may_hold(field.type) and field.name not in known]
        if len(known) == 1 and settings.uri_column is None and not others:
            return schema.field(known[0])
        held = holdings(self._paths[0], self._suffix)
        found = [name for name in held.images if name in known] or list(held.images) or known
        if not found and held.lists:
            raise _several(self.text, schema.field(held.lists[0]))
        if len(found) != 1:
            raise InputError(
                f"which column of {self.text} holds the images? It has {_columns(schema)}: say it with --image-column"
            )
        if settings.uri_column == found[0]:
            raise InputError(f"column {found[0]!r} of {self.text} holds images: name it with --image-column")
        if settings.uri_column is not None or found[0] not in known:
            self._check_names(held, found[0])
        return schema.field(found[0])

    def _check_names(self, held: Holdings, image: str) -> None:
        """Refuse a table that also names image files that are there: these may be what is to be labelled."""
        texts = list(held.first_names)
        guessed = [name for name in texts if name.lower() in NAMES] or (texts if len(texts) == 1 else [])
        wanted = self._settings.uri_column
        root = absolute(self._settings.root or folder_of(self._paths[0]))
        for name in guessed if wanted is None else [wanted]:
            if name in held.names and any(_is_there(uri, root) for uri in held.first_names[name]):
                raise InputError(
                    f"column {image!r} of {self.text} holds images, and {name!r} names files that are there: say "
                    f"--image-column {image} for the ones, or --image-column '' for the others"
                )

    @functools.cached_property
    def _inside(self) -> dict[str, str]:
        """The image struct's fields that are carried: `COLUMN.FIELD` by the carried column's name."""
        kind, names, found = self._image.type, set(self._files.schema().names), dict[str, str]()
        for field in kind if pa.types.is_struct(kind) else ():
            if not (holds_bytes(field.type) or pa.types.is_null(field.type)):
                name = f"{self._image.name}_{field.name}"
                while name in names:
                    name = f"{self._image.name}_{name}"
                names.add(name)
                found[name] = f"{self._image.name}.{field.name}"
        return found

    def _without(self) -> list[str]:
        """Columns that are not carried: the uris, and the images unless they are asked for."""
        named, columns = self._settings.uri_column, self._settings.columns or ()
        without = [] if self._image.name in columns else [self._image.name]
        if named is not None:
            without.append(uri_column(self.text, self._files.schema(), named, any_type=True))
        return without

    def fields(self) -> list[pa.Field]:
        schema = self._files.schema()
        inside = [pa.field(name, types_of(schema, [place])[place]) for name, place in self._inside.items()]
        return chosen(self.text, pa.schema([*schema, *inside]), self._settings.columns, self._without())

    def batches(self) -> Iterator[pa.RecordBatch]:
        fields, named, found = self.fields(), self._settings.uri_column, False
        columns = [self._inside.get(field.name, field.name) for field in fields]
        verbatim = named if named and self._is_verbatim(named) else ""
        for path in self._paths:
            root, size, at = folder_of(path) if is_url(path) else root_of(path), size_and_end(path, 0)[0], 0
            container = uri_of(path, root)
            for batch in self._files.batches_of(path, [named, *columns] if named else columns, verbatim):
                if verbatim:
                    check_names(batch.column(0), partial(row_of, path), at)
                rows = pa.array(np.arange(at, at := at + batch.num_rows))
                names = pc.binary_join_element_wise(container, rows.cast(pa.string()), "#")
                if named:
                    given = self._as_uris(batch.column(0), root)
                    names = pc.if_else(pc.equal(given, ""), names, given)
                carried = list(zip(fields, batch.columns[1 if named else 0 :], strict=True))
                self.passed_over += Counter(bytes_carried(self.text, carried))
                yield listed(names, uri_root(root), self._spans(container, rows, size), carried)
                found = True
        if not found:
            raise InputError(f"the table {self.text} holds no images: it has columns, but no rows")
        schema, without = self._files.schema(), [self._image.name, *self._without()]
        self.passed_over += Counter(notes_on_bytes(self.text, schema, fields, without))

    def _is_verbatim(self, named: str) -> bool:
        """Whether the column that names the rows is text or bytes, which are taken as they are."""
        kind = types_of(self._files.schema(), [named])[named]
        return is_text_type(kind) or is_binary_type(kind)

    def _as_uris(self, values: pa.Array, root: str) -> pa.Array:
        """Values of the column that names the rows, of any type that can be written as text; '' for null."""
        if is_text_type(values.type) or is_binary_type(values.type):
            return uris(values, root)
        try:
            return uris(values.cast(pa.string()), root)
        except pa.ArrowException as error:
            raise InputError(
                f"column {self._settings.uri_column!r} of {self.text} is {values.type}, no text: name another one with "
                "--uri-column"
            ) from error

    def _spans(self, container: str, rows: pa.Array, size: int) -> pa.Array:
        values = [container, rows, pa.scalar(size, pa.int64()), f"column:{self._image.name}"]
        arrays = [pa.repeat(value, len(rows)) if value is not rows else rows for value in values]
        return pa.StructArray.from_arrays(arrays, fields=list(SPAN))


def _end(path: str) -> str:
    """Name, size and a digest of the end of a file: its footer, or the last part of one."""
    size, end = size_and_end(path, _FAR_END_BYTES if is_url(path) else _END_BYTES)
    return f"{name_of(path)} {size} {hashlib.sha256(end).hexdigest()}"


def _named(text: str, schema: pa.Schema, wanted: str) -> pa.Field:
    """The column `wanted`. Raises: InputError where it is not there, or holds no image in a cell."""
    if wanted not in schema.names:
        near = nearest(wanted, schema.names)
        raise InputError(
            f"{text} has no column {wanted!r} as --image-column names it: it has {_columns(schema)}.{near}"
        )
    field = schema.field(wanted)
    if is_binary_type(field.type) or is_image_struct(field.type):
        return field
    if may_hold(field.type):
        raise _several(text, field)
    decode = ", or decode it first where that is base64" if is_text_type(field.type) else ""
    raise InputError(
        f"column {wanted!r} of {text} is {field.type}, no bytes: name another one with --image-column{decode}"
    )


def _several(text: str, field: pa.Field) -> InputError:
    return InputError(
        f"column {field.name!r} of {text} holds several images in a cell ({field.type}): write a row for each of them, "
        "or say --image-column '' if the images are files that another column names"
    )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _is_there(uri: str, root: str) -> bool:
    """Whether there may be an image of that name: a file; what is far away or in the name itself counts as there."""
    path = path_of(uri, root)
    return is_url(path) or is_data_uri(path) or os.path.isfile(path)
