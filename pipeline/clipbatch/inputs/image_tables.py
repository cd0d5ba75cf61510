"""Tables that hold the images themselves: a column of bytes, or Hugging Face's struct of bytes and path.

Listing reads footers and the other columns, never the images. A row's uri is `file.parquet#ROW`, with the row's number
in the file, from 0, unless `--uri-column` names a column; a struct's path is carried through as `COLUMN_path`.
"""

from __future__ import annotations

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
from clipbatch.inputs.lister import (
    SPAN,
    check_names,
    chosen,
    is_binary_type,
    is_text_type,
    listed,
    row_of,
    uri_column,
    uri_root,
    uris,
)
from clipbatch.inputs.opening import size_and_end
from clipbatch.inputs.parquet import ColumnarFiles, schema_of
from clipbatch.inputs.table_files import COLUMNAR, table_files
from clipbatch.storage.uris import absolute, folder_of, is_url, name_of, uri_of

_AT_ONCE = 16
"""Files whose ends are read at the same time."""
_END_BYTES, _FAR_END_BYTES = 2**20, 2**16

_FORMATS = ("jpg", "jpeg", "png", "webp", "gif")
_NAMES = ("image", "images", "img", "bytes", "image_bytes", "img_bytes", "image_data", "content", "data", *_FORMATS)


class ImageTable:
    """A Parquet or Arrow file, or a folder of them."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        """Raises: InputError for a damaged file, or without exactly one column that may be the images'."""
        self.text, self._settings = text, settings
        self.passed_over: Counter[str] = Counter()
        suffix, self._paths = table_files(text) or ("", [])
        self._files = ColumnarFiles(self._paths, suffix)
        self._image = _image_column(text, self._files.schema(), settings.image_column)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        found = table_files(text)
        if found is None or found[0] not in COLUMNAR or (settings.all_files and found[1] != [text]):
            return False
        if settings.image_column is not None or settings.uri_column is not None:
            return settings.image_column is not None
        try:
            return bool(_candidates(schema_of(found[1][0], found[0])))
        except InputError:  # which a manifest says of it, too
            return False

    def identity(self) -> str:
        """Its place, and each file's size and end; to digest all images would take as long as to label them."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ends") as pool:
            facts = "\n".join(pool.map(_end, self._paths))
        return f"{absolute(self.text)} footers-sha256:{hashlib.sha256(os.fsencode(facts)).hexdigest()}"

    def fields(self) -> list[pa.Field]:
        without = [self._image.name]
        if self._settings.uri_column is not None:
            without.append(uri_column(self.text, self._files.schema(), self._settings.uri_column))
        fields = [*self._files.schema()]
        if pa.types.is_struct(self._image.type):
            fields.append(pa.field(self._path_name(), pa.string()))
        return chosen(self.text, pa.schema(fields), self._settings.columns, without)

    def batches(self) -> Iterator[pa.RecordBatch]:
        fields, named, found = self.fields(), self._settings.uri_column, False
        path_name = self._path_name()
        columns = [f.name if f.name != path_name else f"{self._image.name}.path" for f in fields]
        for path in self._paths:
            root, size, at = folder_of(path) if is_url(path) else root_of(path), size_and_end(path, 0)[0], 0
            container = uri_of(path, root)
            for batch in self._files.batches_of(path, [named, *columns] if named else columns, named or ""):
                if named:
                    check_names(batch.column(0), partial(row_of, path), at)
                rows = pa.array(np.arange(at, at := at + batch.num_rows))
                names = (
                    uris(batch.column(0), root)
                    if named
                    else pc.binary_join_element_wise(container, rows.cast(pa.string()), "#")
                )
                carried = list(zip(fields, batch.columns[1 if named else 0 :], strict=True))
                yield listed(names, uri_root(root), self._spans(container, rows, size), carried)
                found = True
        if not found:
            raise InputError(f"the table {self.text} holds no images: it has columns, but no rows")

    def _spans(self, container: str, rows: pa.Array, size: int) -> pa.Array:
        values = [container, rows, pa.scalar(size, pa.int64()), f"column:{self._image.name}"]
        arrays = [pa.repeat(value, len(rows)) if value is not rows else rows for value in values]
        return pa.StructArray.from_arrays(arrays, fields=list(SPAN))

    def _path_name(self) -> str:
        name = f"{self._image.name}_path"
        while name in self._files.schema().names:
            name = f"{self._image.name}_{name}"
        return name


def _end(path: str) -> str:
    """Name, size and a digest of the end of a file: its footer, or the last part of one."""
    size, end = size_and_end(path, _FAR_END_BYTES if is_url(path) else _END_BYTES)
    return f"{name_of(path)} {size} {hashlib.sha256(end).hexdigest()}"


def _image_column(text: str, schema: pa.Schema, wanted: str | None) -> pa.Field:
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is None:
        found = _candidates(schema)
        if len(found) != 1:
            raise InputError(f"which column of {text} holds the images? It has {there}: say it with --image-column")
        return found[0]
    if wanted not in schema.names:
        near = nearest(wanted, schema.names)
        raise InputError(f"{text} has no column {wanted!r} as --image-column names it: it has {there}.{near}")
    field = schema.field(wanted)
    if not (is_binary_type(field.type) or _is_image_struct(field.type)):
        raise InputError(f"column {wanted!r} of {text} is {field.type}, no bytes: name another one with --image-column")
    return field


def _candidates(schema: pa.Schema) -> list[pa.Field]:
    return [f for f in schema if _is_image_struct(f.type) or (is_binary_type(f.type) and f.name.lower() in _NAMES)]


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or {f.name for f in kind} != {"bytes", "path"}:
        return False
    return is_binary_type(kind.field("bytes").type) and is_text_type(kind.field("path").type)
