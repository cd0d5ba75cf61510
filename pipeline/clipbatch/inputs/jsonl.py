"""JSON lines as a typed table: one object per line. All values of a key, in all files, decide its type.

Numbers become int64, uint64 or double, or text if they would lose digits (`json_numbers`). Text becomes a timestamp if
every value of the key is a date. Nested objects and lists become structs and lists. A line may lack a key. A key with
values of several kinds is refused.
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
from clipbatch.inputs.json_numbers import Numbers, becomes_text, parse_with_text
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
        # Keys whose numbers become text.
        self._with_text: set[str] = set()

    def schema(self) -> pa.Schema:
        """Every key with its type. The first call reads all files completely. Raises: InputError with file and line."""
        return pa.schema(self._read_types().items())

    def _read_types(self) -> dict[str, pa.DataType]:
        if self._types is None:
            types: dict[str, pa.DataType] = {}
            numbers = Numbers()
            for path in self._paths:
                for line, chunk in _chunks(path):
                    _check_nesting(path, line, chunk)
                    table = _parsed(path, line, chunk, types)
                    numbers.add(table, chunk)
                    for field in table.schema:
                        try:
                            types[field.name] = _wider(types.get(field.name, pa.null()), field.type)
                        except TypeError as error:
                            raise _parse_error(path, line, chunk, types, error) from error
            types = {name: pa.string() if pa.types.is_null(t) else t for name, t in types.items()}
            self._types = {name: numbers.type_at((name,), kind) for name, kind in types.items()}
            self._with_text = {name for name, kind in types.items() if becomes_text(kind, self._types[name])}
        return self._types

    def where(self, row: int) -> str:
        """File and line of a row, for messages. row: its number, from 0, across all files."""
        for path in self._paths:
            for first, chunk in _chunks(path):
                for line, text in enumerate(chunk.split(b"\n"), first):
                    if text and not text.isspace():
                        if row == 0:
                            return f"line {line} of {path}"
                        row -= 1
        return f"a line of {', '.join(self._paths)}"

    def batches(self, columns: list[str], verbatim: str) -> Iterator[pa.RecordBatch]:
        """The rows with `columns` in their types. Raises: as `schema`."""
        known = self._read_types()
        types = {name: known[name] for name in columns}
        for path in self._paths:
            for line, chunk in _chunks(path):
                if self._with_text.isdisjoint(columns):
                    table = _parsed(path, line, chunk, types, pa.schema(types.items()))
                else:
                    table = parse_with_text(chunk, pa.schema(types.items()))
                yield from table.select(columns).combine_chunks().to_batches()


def _chunks(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, some MiB at a time, each with the number of its first line."""
    with open_input(path) as file:
        yield from ((line, lines) for line, lines in whole_lines(file, path) if not lines.isspace())


def _check_nesting(path: str, line: int, chunk: bytes) -> None:
    try:
        check_json(chunk)
    except NestingError as error:
        number = line + (error.line or 1) - 1
        raise InputError(f"line {number} of {path} is nested more than {MAX_DEPTH} levels deep: flatten it") from None


def _parsed(
    path: str, line: int, chunk: bytes, types: dict[str, pa.DataType], schema: pa.Schema | None = None
) -> pa.Table:
    """The lines as a table. schema: the types to use; None: infer them.

    types: the types of the lines before, which tell which line to blame if the types do not match.
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
        raise _parse_error(path, line, chunk, types, error) from error


def _parse_error(path: str, first: int, chunk: bytes, types: dict[str, pa.DataType], error: Exception) -> InputError:
    """The error for lines that Arrow cannot parse, with the line. first: number of the first line of `chunk`."""
    kinds = {name: _KINDS[kind] for name, t in types.items() for kind, fits in _SAMPLES.items() if fits(t)}
    for number, line in enumerate(chunk.split(b"\n"), first):
        if line.isspace() or not line:
            continue
        try:
            value = json.loads(line.decode(), object_pairs_hook=_to_dict)
        except UnicodeDecodeError:
            return InputError(f"line {number} of {path} is not UTF-8: save the file as UTF-8")
        except ValueError as reason:
            return InputError(f"line {number} of {path} is not JSON: {reason}; write one object per line")
        if not isinstance(value, dict):
            return InputError(
                f"line {number} of {path} is {_KINDS.get(type(value), 'null')}: write one object per line"
            )
        for name, entry in value.items():
            kind = _KINDS.get(type(entry))
            if kind and kinds.setdefault(name, kind) != kind:
                return InputError(
                    f"{name!r} is {kind} in line {number} of {path} and {kinds[name]} before: use values of one kind"
                )
    last = first + chunk.count(b"\n")
    return InputError(f"cannot read lines {first} to {last} of {path}: {str(error).splitlines()[0]}; fix these lines")


def _to_dict(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("the same key appears twice")
    return value


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds values of both types. Raises: TypeError if there is none."""
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
        fields = {field.name: field.type for field in a}
        for field in b:
            fields[field.name] = _wider(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    raise TypeError(f"no type holds both {a} and {b}")
