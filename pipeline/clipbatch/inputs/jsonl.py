"""JSON lines as a typed table: one object a line. A key's type is decided by all of its values in all of the files.

Numbers become int64, uint64 or double, and text where they would lose digits in these (`json_numbers`); text becomes a
timestamp where every value of the key is a date; what is nested becomes structs and lists. A key may be missing in a
line; one with values of several kinds is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from clipbatch.config.nesting import MAX_DEPTH, JsonObject, NestingError, check_json
from clipbatch.errors import InputError
from clipbatch.inputs.json_numbers import Numbers, differ, with_text
from clipbatch.inputs.opening import open_input, whole_lines

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
_SAMPLES = {bool: pa.types.is_boolean, str: lambda t: pa.types.is_string(t) or pa.types.is_timestamp(t)}
_SAMPLES |= {
    list: pa.types.is_list,
    dict: pa.types.is_struct,
    int: lambda t: t in (pa.int64(), pa.uint64(), pa.float64()),
}


class JsonFiles:
    """One table in files of objects."""

    def __init__(self, paths: Sequence[str], suffix: str) -> None:
        self._paths = paths
        self._types: dict[str, pa.DataType] | None = None
        # Keys with numbers that become text.
        self._with_text: set[str] = set()

    def schema(self) -> pa.Schema:
        """Every key with its type. Reads all files to their end once. Raises: InputError with file and line."""
        return pa.schema(self._read_types().items())

    def _read_types(self) -> dict[str, pa.DataType]:
        if self._types is None:
            types: dict[str, pa.DataType] = {}
            numbers = Numbers()
            for path in self._paths:
                for line, chunk in _chunks(path):
                    _check_nesting(path, line, chunk)
                    table = _parsed(path, line, chunk, types)
                    numbers.take(table, chunk)
                    for field in table.schema:
                        try:
                            types[field.name] = _wider(types.get(field.name, pa.null()), field.type)
                        except TypeError as error:
                            raise _explained(path, line, chunk, types, error) from error
            types = {name: pa.string() if pa.types.is_null(t) else t for name, t in types.items()}
            self._types = {name: numbers.type_at((name,), kind) for name, kind in types.items()}
            self._with_text = {name for name, kind in types.items() if differ(kind, self._types[name])}
        return self._types

    def where(self, row: int) -> str:
        """The place of a row, counted from 0 through all files."""
        for path in self._paths:
            for first, chunk in _chunks(path):
                for line, text in enumerate(chunk.split(b"\n"), first):
                    if text and not text.isspace():
                        if row == 0:
                            return f"line {line} of {path}"
                        row -= 1
        return f"a line of {', '.join(self._paths)}"

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns` in their types. Raises: InputError as `schema` does."""
        found = self._read_types()
        types = {name: found[name] for name in columns}
        for path in self._paths:
            for line, chunk in _chunks(path):
                if self._with_text.isdisjoint(columns):
                    table = _parsed(path, line, chunk, types, pa.schema(types.items()))
                else:
                    table = with_text(chunk, pa.schema(types.items()))
                yield from table.select(columns).combine_chunks().to_batches()


def _chunks(path: str) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, some whole lines), until the end of the file."""
    with open_input(path) as file:
        yield from ((line, lines) for line, lines in whole_lines(file, path) if not lines.isspace())


def _check_nesting(path: str, line: int, chunk: bytes) -> None:
    try:
        check_json(chunk)
    except NestingError as error:
        found = line + (error.line or 1) - 1
        raise InputError(f"line {found} of {path} is nested more than {MAX_DEPTH} levels deep: flatten it") from None


def _parsed(
    path: str, line: int, chunk: bytes, types: dict[str, pa.DataType], schema: pa.Schema | None = None
) -> pa.Table:
    """The lines as a table, with the types of `schema` where there is one.

    types: those of the lines before, by which a line that does not go with them is found.
    """
    behaviour = "infer" if schema is None else "ignore"
    try:
        chunk.decode()
        return pajson.read_json(
            io.BytesIO(chunk),
            pajson.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
            pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior=behaviour),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _explained(path, line, chunk, types, error) from error


def _explained(path: str, first: int, chunk: bytes, types: dict[str, pa.DataType], error: Exception) -> InputError:
    """What is wrong, and in which line of `chunk`, whose first line has the number `first`."""
    kinds = {name: _KINDS[kind] for name, t in types.items() for kind, fits in _SAMPLES.items() if fits(t)}
    for number, line in enumerate(chunk.split(b"\n"), first):
        if line.isspace() or not line:
            continue
        try:
            found = json.loads(line.decode(), object_pairs_hook=_once)
        except UnicodeDecodeError:
            return InputError(f"line {number} of {path} is not UTF-8: save the file as UTF-8")
        except ValueError as reason:
            return InputError(f"line {number} of {path} is not JSON: {reason}; write one object a line")
        if not isinstance(found, dict):
            return InputError(f"line {number} of {path} is {_KINDS.get(type(found), 'null')}: write one object a line")
        for name, value in found.items():
            kind = _KINDS.get(type(value))
            if kind and kinds.setdefault(name, kind) != kind:
                return InputError(
                    f"{name!r} is {kind} in line {number} of {path} and {kinds[name]} before: make all of its values "
                    "of one kind"
                )
    last = first + chunk.count(b"\n")
    return InputError(f"cannot read lines {first} to {last} of {path}: {str(error).splitlines()[0]}; mend them")


def _once(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the same key stands in it twice")
    return found


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds the values of both. Raises: TypeError where none does."""
    types = pa.types
    if a == b or types.is_null(b):
        return a
    if types.is_null(a):
        return b
    if types.is_timestamp(a) and types.is_timestamp(b):
        return pa.timestamp("ns")
    if all(types.is_timestamp(t) or types.is_string(t) for t in (a, b)):
        return pa.string()
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if types.is_list(a) and types.is_list(b):
        return pa.list_(_wider(a.value_type, b.value_type))
    if types.is_struct(a) and types.is_struct(b):
        inside = {field.name: field.type for field in a}
        for field in b:
            inside[field.name] = _wider(inside.get(field.name, pa.null()), field.type)
        return pa.struct(list(inside.items()))
    raise TypeError(f"{a} does not go with {b}")
