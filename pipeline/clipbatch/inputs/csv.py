"""CSV and TSV files as typed tables. A column's type is decided by all of its values in all of the files.

The first of these types that holds every value: int64, uint64, double, bool, date, timestamp (seconds, nanoseconds,
the same in UTC), text. In columns that are not text, `NA`, `NaN`, `null` and their like are null. Numbers that
would lose digits stay text: with leading zeros, or whole ones of more digits than their type holds. A cell of nothing
is null, a quoted one is empty text.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from clipbatch.errors import InputError
from clipbatch.inputs.lister import only_once
from clipbatch.inputs.opening import MAX_LINE_BYTES, open_input, unreadable
from clipbatch.storage.uris import is_text

_BLOCK_BYTES = 4 * 2**20
_NULLS = pa.array(["#N/A", "#NA", "N/A", "NA", "NULL", "NaN", "null", "nan", "n/a", "<NA>", "None"])
_TIMES = [pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("s", "ns")]
_TYPES = (pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.date32(), *_TIMES)
_CODE_LIKE = r"^[+-]?0[0-9xX]"
_LONG = r"^[+-]?[0-9]{17,}$"
_SEPARATORS = (";", "\t", "|")


class CsvFiles:
    """One table in files of the same columns, in any order."""

    def __init__(self, paths: Sequence[str], suffix: str) -> None:
        self._paths, self._separator = paths, "\t" if suffix == ".tsv" else ","
        self._types: dict[str, pa.DataType] | None = None

    def schema(self) -> pa.Schema:
        """Every column with its type; `binary` for one that is not UTF-8. Reads all files to their end once.

        Raises: InputError with file and line for what is no CSV.
        """
        return pa.schema(self._read_types().items())

    def _read_types(self) -> dict[str, pa.DataType]:
        if self._types is None:
            guesses: dict[str, _Guess] = {}
            for path in self._paths:
                batch = None
                for batch in self._read(path):
                    for name, cells in zip(batch.schema.names, batch.columns, strict=True):
                        guesses.setdefault(name, _Guess()).take(cells)
                if batch is not None and b"\n" in (batch.columns[-1][-1].as_py() or b""):
                    self._check_quotes(path)
                for name in self._header(path):
                    guesses.setdefault(name, _Guess())
            self._types = {name: guess.type() for name, guess in guesses.items()}
        return self._types

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns` in their types, but `verbatim` as bytes. Raises: InputError as `schema` does."""
        found_types = self._read_types()
        types = {name: pa.binary() if name == verbatim else found_types[name] for name in columns}
        schema = pa.schema(types.items())
        for path in self._paths:
            for batch in self._read(path, columns):
                found = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield pa.record_batch(
                    [_converted(found[n], t) if n in found else pa.nulls(len(batch), t) for n, t in types.items()],
                    schema=schema,
                )

    def where(self, row: int) -> str:
        """The place of a row, counted from 0 through all files."""
        for path in self._paths:
            for line, _ in islice(self._scan(path), 1, None):
                if row == 0:
                    return f"line {line} of {path}"
                row -= 1
        return f"a line of {', '.join(self._paths)}"

    def not_text(self, column: str) -> InputError:
        """The refusal for `column`, whose type is `binary`: with the first line that is not UTF-8."""
        for path in self._paths:
            names = self._header(path)
            at = names.index(column) if column in names else len(names)
            for line, row in self._scan(path):
                if not all(map(is_text, row[at : at + 1])):
                    return InputError(
                        f"column {column!r} of {path} is not UTF-8 in line {line}: save the file as UTF-8, or leave "
                        "the column out with --columns"
                    )
        return InputError(f"column {column!r} of {', '.join(self._paths)} is not UTF-8")

    def _read(self, path: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All cells as bytes, empty ones as nulls; `columns`: only those that there are of these."""
        names = self._header(path)
        wanted = names if columns is None else [name for name in names if name in columns]
        with open_input(path) as file:
            try:
                yield from pacsv.open_csv(
                    file,
                    pacsv.ReadOptions(block_size=_BLOCK_BYTES),
                    pacsv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
                    pacsv.ConvertOptions(
                        check_utf8=False,
                        column_types=dict.fromkeys(names, pa.binary()),
                        include_columns=wanted,
                        null_values=[""],
                        strings_can_be_null=True,
                        quoted_strings_can_be_null=False,
                    ),
                )
            except (OSError, pa.ArrowException) as error:
                raise self._explained(path, len(names), error) from error

    def _header(self, path: str) -> list[str]:
        """The names of the columns. Raises: InputError where there are none, or none that can be told apart."""
        try:
            names = next((row for _, row in self._scan(path)), None)
        except csv.Error as error:
            raise unreadable(path, error) from error
        if names is None:
            raise InputError(f"{path} is empty: write a line of column names, and a line for each image")
        if not all(is_text(name) and "\0" not in name for name in names):
            raise InputError(f"the column names of {path} are not UTF-8: save the file as UTF-8")
        only_once(path, names)
        others = [sign for sign in _SEPARATORS if len(names) == 1 and sign in names[0] and sign != self._separator]
        if others:
            word = "tabs" if self._separator == "\t" else "commas"
            raise InputError(f"the columns of {path} are separated by {others[0]!r}: separate them by {word}")
        return names

    def _scan(self, path: str) -> Iterator[tuple[int, list[str]]]:
        """(line number, cells) of each row, slowly; surrogates stand for bytes that are not UTF-8."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        with open_input(path) as file:
            text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
            try:
                rows = csv.reader(text, delimiter=self._separator, strict=True)
                line = 1
                for row in rows:
                    if row:
                        yield line, row
                    line = rows.line_num + 1
            except OSError as error:  # compressed, and cut short
                raise unreadable(path, error) from error

    def _explained(self, path: str, columns: int, error: Exception) -> InputError:
        """What is wrong with the file, and in which line."""
        line = 1
        try:
            for line, row in self._scan(path):
                if len(row) != columns:
                    return InputError(
                        f"line {line} of {path} has {len(row)} columns, its header {columns}: mend the line, or quote "
                        "values that hold separators"
                    )
                if (size := sum(len(os.fsencode(cell)) for cell in row)) > _BLOCK_BYTES:
                    return InputError(
                        f"line {line} of {path} has {size} bytes, and {_BLOCK_BYTES} are the most: shorten its values"
                    )
        except csv.Error as stop:
            return InputError(f"cannot read {path} after line {line}: {stop}; look for a quote that is not closed")
        return unreadable(path, error)

    def _check_quotes(self, path: str) -> None:
        """Refuse a file with a quote that is never closed: its value has swallowed all rows after it."""
        line = 0
        try:
            for row in self._scan(path):
                line = row[0]
        except csv.Error as error:
            raise InputError(f"a quote in the row after line {line} of {path} is not closed: close it") from error


class _Guess:
    """Which types hold all values of a column seen so far."""

    def __init__(self) -> None:
        self._fit: list[pa.DataType] = [*_TYPES, pa.string()]
        self._seen = False

    def take(self, cells: pa.Array) -> None:
        try:
            text = cells.cast(pa.string())
        except pa.ArrowInvalid:  # not UTF-8
            self._fit = []
        if len(self._fit) < 2 or cells.null_count == len(cells):
            return
        values = _without_null_words(text)
        self._seen = self._seen or values.null_count < len(values)
        coded, long = (pc.any(pc.match_substring_regex(values, kind)).as_py() for kind in (_CODE_LIKE, _LONG))
        refused = {*(_TYPES[:3] if coded else ()), *([pa.float64()] if long else ())}
        self._fit = [t for t in self._fit if t not in refused and (t == pa.string() or _holds(t, values))]

    def type(self) -> pa.DataType:
        if not self._fit:
            return pa.binary()
        return self._fit[0] if self._seen else pa.string()


def _holds(kind: pa.DataType, values: pa.Array) -> bool:
    try:
        values.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _converted(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind == pa.binary():
        return cells
    text = cells.cast(pa.string())
    return text if kind == pa.string() else _without_null_words(text).cast(kind)


def _without_null_words(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_in(text, _NULLS), pa.scalar(None, pa.string()), text)
