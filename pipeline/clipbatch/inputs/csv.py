"""CSV and TSV files as typed tables. All values of a column, in all files, decide its type.

The type is the first of these that holds every value: int64, uint64, double, bool, date, timestamp (seconds,
nanoseconds, the same in UTC), text. In columns that are not text, words such as `NA`, `NaN` and `null` become null.
Numbers that would lose digits stay text: those with leading zeros, and whole numbers with more digits than the type
holds. An empty cell is null; an empty cell in quotes is empty text.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from clipbatch.errors import InputError
from clipbatch.inputs.column_types import portable
from clipbatch.inputs.header import image_columns, is_row, numbered
from clipbatch.inputs.opening import unreadable
from clipbatch.inputs.quoting import Rows
from clipbatch.storage.uris import is_text

_HEAD_ROWS = 1000
_BLANK_LINE = re.compile(rb"(?:\A|\n)\r?\n")
_NULLS = pa.array(["#N/A", "#NA", "N/A", "NA", "NULL", "NaN", "null", "nan", "n/a", "<NA>", "None"])
_TIMES = [pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("s", "ns")]
_TYPES = (pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.date32(), *_TIMES)
_CODE_LIKE = r"^[+-]?0[0-9xX]"
_LONG = r"^[+-]?[0-9]{17,}$"
_SEPARATORS = (";", "\t", "|")


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a file."""

    names: list[str]
    has_header: bool
    # Columns whose cells name images.
    images: list[str]


class CsvFiles:
    """One table in files with the same columns, in any order. Without a header they are called `column_1` and so on."""

    def __init__(
        self, paths: Sequence[str], suffix: str, *, no_header: bool | None = None, named: Sequence[str] = ()
    ) -> None:
        """no_header: whether the first line is a row; None: decide from the file. named: columns that settings name."""
        self._paths, self._separator = paths, "\t" if suffix == ".tsv" else ","
        self._no_header, self._named = no_header, named
        self._types: dict[str, pa.DataType] | None = None
        self._guesses: dict[str, _Guess] = {}
        self._columns: dict[str, _Columns] = {}
        # Blank lines per file, counted if there is only one column: there, a blank line may be meant as a row.
        self._blank_lines: dict[str, int] = {}
        # What to tell the user about the files; complete after `schema`.
        self.notes: Counter[str] = Counter()

    def schema(self) -> pa.Schema:
        """Every column with its type; `binary` if it is not UTF-8. The first call reads all files completely.

        Raises: InputError with file and line if a file is not valid CSV.
        """
        return pa.schema(self._read_types().items())

    def expect(self, types: Mapping[str, pa.DataType]) -> None:
        """Give each of these columns its type, or one that is written as this type (`column_types`), if that holds all
        of its cells."""
        known = self._read_types()
        for name, kind in types.items():
            if name in self._guesses:
                known[name] = self._guesses[name].type_for(kind)

    def _read_types(self) -> dict[str, pa.DataType]:
        if self._types is None:
            guesses = self._guesses
            for path in self._paths:
                rows = Rows(path, self._separator)
                for batch in self._read(path, rows):
                    for name, cells in zip(batch.schema.names, batch.columns, strict=True):
                        guesses.setdefault(name, _Guess()).add(cells)
                self._note(path, rows)
                for name in self._columns_of(path).names:
                    guesses.setdefault(name, _Guess())
            self._types = {name: guess.type() for name, guess in guesses.items()}
        return self._types

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns` in their types. verbatim: the column to return as bytes. Raises: as `schema`."""
        known = self._read_types()
        types = {name: pa.binary() if name == verbatim else known[name] for name in columns}
        schema = pa.schema(types.items())
        for path in self._paths:
            for batch in self._read(path, Rows(path, self._separator), columns):
                cells = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield pa.record_batch(
                    [_converted(cells[n], t) if n in cells else pa.nulls(len(batch), t) for n, t in types.items()],
                    schema=schema,
                )

    def where(self, row: int) -> str:
        """File and line of a row, for messages. row: its number, from 0, across all files."""
        for path in self._paths:
            cells = (line for first, rows in Rows(path, self._separator) for line, _ in self._cells(rows, first))
            for line in islice(cells, int(self._columns_of(path).has_header), None):
                if row == 0:
                    return f"line {line} of {path}"
                row -= 1
        return f"a line of {', '.join(self._paths)}"

    def columns_of_images(self) -> list[str]:
        """The columns that name images in files without a header. Empty if there is a header: its names decide."""
        columns = self._columns_of(self._paths[0])
        return [] if columns.has_header else columns.images

    def not_text(self, column: str) -> InputError:
        """The error for `column`, whose type is `binary`. Names the first line that is not UTF-8."""
        for path in self._paths:
            names = self._columns_of(path).names
            at = names.index(column) if column in names else len(names)
            for first, rows in Rows(path, self._separator):
                for line, row in self._cells(rows, first):
                    if not all(map(is_text, row[at : at + 1])):
                        return InputError(
                            f"column {column!r} of {path} is not UTF-8 in line {line}: save the file as UTF-8, or "
                            "leave the column out with --columns"
                        )
        return InputError(f"column {column!r} of {', '.join(self._paths)} is not UTF-8: save the files as UTF-8")

    def _read(self, path: str, rows: Rows, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The cells of a file as bytes, empty ones as null. columns: return only these, if the file has them."""
        layout = self._columns_of(path)
        wanted = layout.names if columns is None else [name for name in layout.names if name in columns]
        convert = pacsv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(layout.names, pa.binary()),
            include_columns=wanted,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        parse = pacsv.ParseOptions(delimiter=self._separator, newlines_in_values=True)
        header = layout.has_header
        self._blank_lines[path] = 0
        for line, chunk in rows:
            if len(layout.names) == 1 and _BLANK_LINE.search(chunk):
                text = io.StringIO(chunk.decode("utf-8", "replace"), newline="")
                self._blank_lines[path] += sum(not row for row in csv.reader(text))
            if not chunk.strip(b"\r\n"):
                continue
            options = pacsv.ReadOptions(
                use_threads=False, block_size=len(chunk) + 1, column_names=None if header else layout.names
            )
            header = False
            try:
                table = pacsv.read_csv(pa.py_buffer(chunk), options, parse, convert)
            except pa.ArrowException as error:
                raise self._parse_error(path, line, chunk, len(layout.names), error) from error
            yield from table.to_batches()

    def _columns_of(self, path: str) -> _Columns:
        """The columns of a file. Raises: InputError if there are none, or two have the same name."""
        if path not in self._columns:
            self._columns[path] = columns = self._find_columns(path)
            if columns.has_header != self._columns[self._paths[0]].has_header:
                raise InputError(
                    f"{path} and {self._paths[0]} are one table, but only one of them has a header: write the header "
                    "into all files"
                )
        return self._columns[path]

    def _find_columns(self, path: str) -> _Columns:
        line, chunk = next(((n, rows) for n, rows in Rows(path, self._separator) if rows.strip(b"\r\n")), (1, b""))
        head = [row for _, row in islice(self._cells(chunk, line), _HEAD_ROWS)]
        if not head:
            raise InputError(f"{path} is empty: write a line of column names and one line per image")
        first = head[0]
        if not all(is_text(name) and "\0" not in name for name in first):
            raise InputError(f"the column names of {path} are not UTF-8: save the file as UTF-8")
        no_header = is_row(head, self._named) if self._no_header is None else self._no_header
        first_line = f"the first line of {path} ({_short(', '.join(first))})"
        if no_header is None:
            raise InputError(
                f"{first_line} may be a header or a row: use --no-header if it is a row, or name one of its columns "
                "with --uri-column if it is a header"
            )
        repeated = sorted({name for name in first if first.count(name) > 1}) if not no_header else []
        if repeated:
            raise InputError(
                f"{path} has more than one column {repeated[0]!r}: give every column a name of its own, or use "
                "--no-header if its first line is a row"
            )
        others = [sign for sign in _SEPARATORS if len(first) == 1 and sign in first[0] and sign != self._separator]
        if others:
            expected = "tabs" if self._separator == "\t" else "commas"
            raise InputError(f"the columns of {path} are separated by {others[0]!r}: separate them by {expected}")
        names = numbered(len(first)) if no_header else first
        if no_header and self._no_header is None:
            self.notes[f"({first_line} is no header, so its columns are {names[0]} and so on)"] += 1
        return _Columns(names, not no_header, [names[at] for at in image_columns(head[not no_header :], len(first))])

    def _note(self, path: str, rows: Rows) -> None:
        """Record what is odd in a file, after all of it was read."""
        if self._blank_lines[path]:
            self.notes[f"(blank lines of {path}, which are no rows)"] += self._blank_lines[path]
        if rows.suspect_cells:
            what = f"(quoted values of {path} that look like rows, the first in lines {rows.first_suspect_lines})"
            self.notes[what] += rows.suspect_cells

    def _cells(self, rows: bytes, line: int) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row. Slow. Surrogates stand for bytes that are not UTF-8. line: the first."""
        text = io.StringIO(rows.decode("utf-8", "surrogateescape"), newline="")
        reader = csv.reader(text, delimiter=self._separator, strict=True)
        first = line
        for row in reader:
            if row:
                yield line, row
            line = first + reader.line_num

    def _parse_error(self, path: str, first: int, rows: bytes, columns: int, error: Exception) -> InputError:
        """The error for rows that Arrow cannot parse, with the line. first: number of the first line."""
        for line, row in self._cells(rows, first):
            if len(row) != columns:
                return InputError(
                    f"line {line} of {path} has {len(row)} columns, its header {columns}: fix the line, or quote "
                    "values that contain separators"
                )
        return unreadable(path, error)


class _Guess:
    """The types that hold all values of a column so far."""

    def __init__(self) -> None:
        self._fit: list[pa.DataType] = [*_TYPES, pa.string()]
        self._seen = False

    def add(self, cells: pa.Array) -> None:
        try:
            text = cells.cast(pa.string())
        except pa.ArrowInvalid:  # not UTF-8
            self._fit = []
        if len(self._fit) < 2 or cells.null_count == len(cells):
            return
        values = _without_null_words(text)
        self._seen = self._seen or values.null_count < len(values)
        code_like, long = (pc.any(pc.match_substring_regex(values, kind)).as_py() for kind in (_CODE_LIKE, _LONG))
        excluded = {*(_TYPES[:3] if code_like else ()), *([pa.float64()] if long else ())}
        self._fit = [t for t in self._fit if t not in excluded and (t == pa.string() or _holds(t, values))]

    def type(self) -> pa.DataType:
        if not self._fit:
            return pa.binary()
        return self._fit[0] if self._seen else pa.string()

    def type_for(self, wanted: pa.DataType) -> pa.DataType:
        """The type that is written as `wanted`, if it holds all values; else as `type`."""
        return next((kind for kind in self._fit if portable(kind) == wanted), self.type())


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


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _without_null_words(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_in(text, _NULLS), pa.scalar(None, pa.string()), text)
