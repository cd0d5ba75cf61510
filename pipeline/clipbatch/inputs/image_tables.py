"""Tables that hold the images themselves, in a column of bytes or in Hugging Face's struct of bytes and path.

Listing reads the footers and the other columns. It reads a few images only if types and names do not tell which column
holds them. The uri of a row is `file.parquet#ROW`, with the number of the row in the file, from 0. If `--uri-column`
names a column, its value is the uri, unless it is null. The path and the other fields of a struct are copied to columns
`COLUMN_path` and so on.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError, nearest
from clipbatch.inputs.folders import root_of
from clipbatch.inputs.holding import (
    ImageColumns,
    find_image_columns,
    is_image_struct,
    likely_image_columns,
    may_hold_images,
)
from clipbatch.inputs.lister import (
    NAMES,
    SPAN,
    binary_sizes,
    carried_fields,
    check_names,
    holds_bytes,
    is_binary_type,
    is_text_type,
    notes_on_binary_columns,
    row_place,
    types_of,
    uri_column,
    uri_root,
    uri_rows,
    uris,
)
from clipbatch.inputs.opening import size_and_end
from clipbatch.inputs.parquet import ColumnarFiles, schema_of
from clipbatch.inputs.table_files import COLUMNAR, table_files
from clipbatch.inputs.table_manifest import TableManifest
from clipbatch.storage.uris import absolute, folder_of, is_data_uri, is_url, name_of, path_of, uri_of

# How many files we read the end of at the same time.
_MAX_READS = 16
_END_BYTES, _FAR_END_BYTES = 2**20, 2**16


class ImageTable:
    """A Parquet or Arrow file, or a folder of them."""

    incomplete: Sequence[str] = ()

    def __init__(self, text: str, settings: SourceSettings) -> None:
        """Raises: InputError for a damaged file."""
        self.text, self._settings = text, settings
        self.passed_over: Counter[str] = Counter()
        self._suffix, self._paths = table_files(text) or ("", [])
        self._files = ColumnarFiles(self._paths, self._suffix)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        table = table_files(text)
        if table is None or table[0] not in COLUMNAR or (settings.all_files and table[1] != [text]):
            return False
        if settings.image_column is not None:
            return settings.image_column != ""
        suffix, paths = table
        try:
            schema = schema_of(paths[0], suffix)
            if settings.uri_column is None and likely_image_columns(schema):
                return True
            if not any(may_hold_images(field.type) for field in schema):
                return False
            columns = find_image_columns(paths[0], suffix)
        except InputError:  # `TableManifest` raises the same error
            return False
        return bool(columns.images or columns.lists)

    def identity(self) -> str:
        """The path, and a digest of each file's size and end. A digest of all images would take as long as a run."""
        with ThreadPoolExecutor(_MAX_READS, thread_name_prefix="ends") as pool:
            facts = "\n".join(pool.map(_end, self._paths))
        return f"{absolute(self.text)} footers-sha256:{hashlib.sha256(os.fsencode(facts)).hexdigest()}"

    def former_identity(self) -> str:
        """The identity that earlier versions recorded, which took this table for a manifest."""
        return TableManifest(self.text, self._settings).identity()

    @functools.cached_property
    def _image(self) -> pa.Field:
        """The column with the images. Raises: InputError if there is not exactly one."""
        schema, settings = self._files.schema(), self._settings
        if settings.image_column is not None:
            return _named(self.text, schema, settings.image_column)
        known = [field.name for field in likely_image_columns(schema)]
        others = [field.name for field in schema if may_hold_images(field.type) and field.name not in known]
        if len(known) == 1 and settings.uri_column is None and not others:
            return schema.field(known[0])
        sampled = find_image_columns(self._paths[0], self._suffix)
        columns = [name for name in sampled.images if name in known] or list(sampled.images) or known
        if not columns and sampled.lists:
            raise _several_images_error(self.text, schema.field(sampled.lists[0]))
        if len(columns) != 1:
            raise InputError(
                f"which column of {self.text} holds the images? It has {_columns(schema)}: name it with --image-column"
            )
        if settings.uri_column == columns[0]:
            raise InputError(f"column {columns[0]!r} of {self.text} holds images: name it with --image-column")
        if settings.uri_column is not None or columns[0] not in known:
            self._check_ambiguity(sampled, columns[0])
        return schema.field(columns[0])

    def _check_ambiguity(self, sampled: ImageColumns, image: str) -> None:
        """Raises: InputError if another column names image files that exist: the user may mean those."""
        texts = list(sampled.first_values)
        guessed = [name for name in texts if name.lower() in NAMES] or (texts if len(texts) == 1 else [])
        wanted = self._settings.uri_column
        root = absolute(self._settings.root or folder_of(self._paths[0]))
        for name in guessed if wanted is None else [wanted]:
            if name in sampled.names and any(_may_exist(uri, root) for uri in sampled.first_values[name]):
                raise InputError(
                    f"column {image!r} of {self.text} holds images, and {name!r} names files that exist: use "
                    f"--image-column {image} to label the images in the table, or --image-column '' to label the files"
                )

    @functools.cached_property
    def _struct_fields(self) -> dict[str, str]:
        """The fields of the image struct to copy to the output: `COLUMN.FIELD` by the name of the output column."""
        kind, names, fields = self._image.type, set(self._files.schema().names), dict[str, str]()
        for field in kind if pa.types.is_struct(kind) else ():
            if not (holds_bytes(field.type) or pa.types.is_null(field.type)):
                name = f"{self._image.name}_{field.name}"
                while name in names:
                    name = f"{self._image.name}_{name}"
                names.add(name)
                fields[name] = f"{self._image.name}.{field.name}"
        return fields

    def _excluded(self) -> list[str]:
        """The columns not to copy to the output: the uris, and the images unless `--columns` names them."""
        named, columns = self._settings.uri_column, self._settings.columns or ()
        excluded = [] if self._image.name in columns else [self._image.name]
        if named is not None:
            excluded.append(uri_column(self.text, self._files.schema(), named, any_type=True))
        return excluded

    def fields(self) -> list[pa.Field]:
        schema = self._files.schema()
        inner = [pa.field(name, types_of(schema, [path])[path]) for name, path in self._struct_fields.items()]
        whole, also = pa.schema([*schema, *inner]), self._settings.caption_names
        return carried_fields(self.text, whole, self._settings.columns, self._excluded(), also)

    def batches(self) -> Iterator[pa.RecordBatch]:
        fields, named, has_rows = self.fields(), self._settings.uri_column, False
        columns = [self._struct_fields.get(field.name, field.name) for field in fields]
        verbatim = named if named and self._is_verbatim(named) else ""
        for path in self._paths:
            root, size, at = folder_of(path) if is_url(path) else root_of(path), size_and_end(path, 0)[0], 0
            container = uri_of(path, root)
            for batch in self._files.batches_of(path, [named, *columns] if named else columns, verbatim):
                if verbatim:
                    check_names(batch.column(0), partial(row_place, path), at)
                rows = pa.array(np.arange(at, at := at + batch.num_rows))
                names = pc.binary_join_element_wise(container, rows.cast(pa.string()), "#")
                if named:
                    own_names = self._as_uris(batch.column(0), root)
                    names = pc.if_else(pc.equal(own_names, ""), names, own_names)
                carried = list(zip(fields, batch.columns[1 if named else 0 :], strict=True))
                self.passed_over += Counter(binary_sizes(self.text, carried))
                yield uri_rows(names, uri_root(root), self._spans(container, rows, size), carried)
                has_rows = True
        if not has_rows:
            raise InputError(f"the table {self.text} holds no images: it has columns, but no rows")
        schema, excluded = self._files.schema(), [self._image.name, *self._excluded()]
        self.passed_over += Counter(notes_on_binary_columns(self.text, schema, fields, excluded))

    def _is_verbatim(self, named: str) -> bool:
        """Whether the column `named` holds text or bytes, which become uris without conversion."""
        kind = types_of(self._files.schema(), [named])[named]
        return is_text_type(kind) or is_binary_type(kind)

    def _as_uris(self, values: pa.Array, root: str) -> pa.Array:
        """The values of the uri column, of any type that Arrow converts to text; '' for null."""
        if is_text_type(values.type) or is_binary_type(values.type):
            return uris(values, root)
        try:
            return uris(values.cast(pa.string()), root)
        except pa.ArrowException as error:
            raise InputError(
                f"column {self._settings.uri_column!r} of {self.text} is {values.type}, not text: name another one "
                "with --uri-column"
            ) from error

    def _spans(self, container: str, rows: pa.Array, size: int) -> pa.Array:
        values = [container, rows, pa.scalar(size, pa.int64()), f"column:{self._image.name}"]
        arrays = [pa.repeat(value, len(rows)) if value is not rows else rows for value in values]
        return pa.StructArray.from_arrays(arrays, fields=list(SPAN))


def _end(path: str) -> str:
    """Name, size and a digest of the end of a file, which holds the footer or a part of it."""
    size, end = size_and_end(path, _FAR_END_BYTES if is_url(path) else _END_BYTES)
    return f"{name_of(path)} {size} {hashlib.sha256(end).hexdigest()}"


def _named(text: str, schema: pa.Schema, wanted: str) -> pa.Field:
    """The column `wanted`. Raises: InputError if it does not exist, or its cells cannot hold one image each."""
    if wanted not in schema.names:
        near = nearest(wanted, schema.names)
        raise InputError(
            f"{text} has no column {wanted!r}, which --image-column names: it has {_columns(schema)}.{near}"
        )
    field = schema.field(wanted)
    if is_binary_type(field.type) or is_image_struct(field.type):
        return field
    if may_hold_images(field.type):
        raise _several_images_error(text, field)
    decode = ", or decode it first if it is base64" if is_text_type(field.type) else ""
    raise InputError(
        f"column {wanted!r} of {text} is {field.type}, not bytes: name another one with --image-column{decode}"
    )


def _several_images_error(text: str, field: pa.Field) -> InputError:
    return InputError(
        f"column {field.name!r} of {text} holds several images in a cell ({field.type}): write a row for each of them, "
        "or use --image-column '' if the images are files that another column names"
    )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _may_exist(uri: str, root: str) -> bool:
    """Whether the image that `uri` names may exist. True for a file that exists, for every url and every data URI."""
    path = path_of(uri, root)
    return is_url(path) or is_data_uri(path) or os.path.isfile(path)
