"""Manifests that are tables. One column names the images; the others are copied to the output with their types."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.csv import CsvFiles
from clipbatch.inputs.jsonl import JsonFiles
from clipbatch.inputs.lister import (
    NAMES,
    binary_sizes,
    carried_fields,
    check_names,
    is_binary_type,
    is_text_type,
    notes_on_binary_columns,
    uri_column,
    uri_root,
    uri_rows,
    uris,
)
from clipbatch.inputs.opening import download_into, unreadable
from clipbatch.inputs.parquet import ColumnarFiles
from clipbatch.inputs.table_files import table_files
from clipbatch.storage.atomic import file_sha256
from clipbatch.storage.uris import absolute, folder_of, is_url

_READERS: dict[str, type[JsonFiles | ColumnarFiles]] = {".jsonl": JsonFiles, ".ndjson": JsonFiles}


class Table(Protocol):
    """A reader for the files of one table."""

    def schema(self) -> pa.Schema:
        """All columns with their types. Raises: InputError if a file is damaged."""

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns`. verbatim: a column that may be returned as bytes, since it need not be UTF-8."""

    def where(self, row: int) -> str:
        """File and line of a row, for messages. row: its number, from 0, across all files."""


class TableManifest:
    """A table whose rows name images. Their paths are relative to the folder of the table, or to `--root`."""

    incomplete: Sequence[str] = ()

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text, self._settings = text, settings
        self.passed_over: Counter[str] = Counter()
        suffix, self._paths = table_files(text) or ("", [])
        self._root = absolute(settings.root or folder_of(self._paths[0]))
        if is_url(text):
            folder = tempfile.mkdtemp(prefix="clipbatch-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._paths = [
                # one folder per file, since splits of a data set have files of the same name
                download_into(tempfile.mkdtemp(dir=folder), path)
                for path in self._paths
            ]
        named = [*(settings.columns or ()), *([settings.uri_column] if settings.uri_column else [])]
        named += settings.caption_names
        self._table: Table = (
            CsvFiles(self._paths, suffix, no_header=settings.no_header, named=named)
            if suffix in (".csv", ".tsv")
            else _READERS.get(suffix, ColumnarFiles)(self._paths, suffix)
        )

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        table = table_files(text)
        return table is not None and not (settings.all_files and table[1] != [text])

    def identity(self) -> str:
        digests = [f"{os.path.basename(path)} {_digest(path)}" for path in self._paths]
        digest = hashlib.sha256(os.fsencode("\n".join(digests))).hexdigest()
        return f"{absolute(self.text)} sha256:{digest} root:{self._root}"

    def fields(self) -> list[pa.Field]:
        schema = self._table.schema()
        uri, columns = self._uri_column(schema), self._settings.columns
        if isinstance(self._table, CsvFiles):
            for field in schema:
                if field.name in self._settings.caption_names:  # rows whose caption is not UTF-8 have none
                    continue
                if is_binary_type(field.type) and field.name != uri and (columns is None or field.name in columns):
                    raise self._table.not_text(field.name)
        return carried_fields(self.text, schema, columns, [uri], self._settings.caption_names)

    def expect(self, types: Mapping[str, pa.DataType]) -> None:
        """Give these columns these types, where all cells of a CSV file can be read so."""
        if isinstance(self._table, CsvFiles):
            self._table.expect(types)

    def batches(self) -> Iterator[pa.RecordBatch]:
        uri, fields, rows = self._uri_column(self._table.schema()), self.fields(), 0
        for batch in self._table.batches([uri, *(field.name for field in fields)], uri):
            check_names(batch.column(0), self._table.where, rows)
            rows += batch.num_rows
            carried = list(zip(fields, batch.columns[1:], strict=True))
            self.passed_over += Counter(binary_sizes(self.text, carried))
            yield uri_rows(uris(batch.column(0), self._root), uri_root(self._root), None, carried)
        if not rows:
            raise InputError(f"the manifest {self.text} names no images: it has columns, but no rows")
        if isinstance(self._table, CsvFiles):
            self.passed_over += self._table.notes
        else:
            self.passed_over += Counter(notes_on_binary_columns(self.text, self._table.schema(), fields, [uri]))

    def _uri_column(self, schema: pa.Schema) -> str:
        if not schema.names:
            raise InputError(f"the manifest {self.text} names no images: it is empty")
        wanted = self._settings.uri_column or self._guess_uri_column(schema)
        return uri_column(self.text, schema, wanted, any_type=isinstance(self._table, CsvFiles))

    def _guess_uri_column(self, schema: pa.Schema) -> str | None:
        """The only column with a name like `uri`, or else the only text column."""
        if isinstance(self._table, CsvFiles) and len(images := self._table.columns_of_images()) == 1:
            return images[0]
        any_type = isinstance(self._table, CsvFiles)  # in CSV, names that consist of digits look like numbers
        named = [f.name for f in schema if f.name.lower() in NAMES and (any_type or is_text_type(f.type))]
        texts = [f.name for f in schema if is_text_type(f.type)]
        return next((columns[0] for columns in (named, texts) if len(columns) == 1), None)


def _digest(path: str) -> str:
    try:
        return file_sha256(Path(path))
    except OSError as error:
        raise unreadable(path, error) from error
