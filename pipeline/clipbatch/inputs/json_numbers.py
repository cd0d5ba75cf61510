"""Keep all digits of the numbers in JSON lines.

The problem: Arrow's reader turns whole numbers beyond int64 into doubles and so loses digits. Here, a key with whole
numbers becomes int64, or uint64 if a number needs that and none is negative, else text, as in CSV. Whole numbers mixed
with fractions become text too if a double cannot hold them exactly.

A key may be inside objects and lists, so we identify it by its path, such as `("meta", "ids", "[]")`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

KeyPath = tuple[str, ...]

# A whole number that a double may be unable to hold exactly.
_LONG = re.compile(rb"[:\[,\s]-?[0-9]{16,}(?=[,\]}\s]|$)")
_ITEM = "[]"
# We compare whole numbers up to this length. Longer ones count as a number of this length.
_MAX_DIGITS = 40
_EXACT = 2**53


class _Literal(str):
    """A number, as text, as in the file."""

    __slots__ = ()


@dataclass(slots=True)
class _Range:
    """The range of a key's numbers."""

    # The smallest and the largest whole number. The range always includes 0.
    low: int = 0
    high: int = 0
    # Whether some numbers are not whole.
    fractions: bool = False


class Numbers:
    """Collects the range of the numbers of each key in JSON lines."""

    def __init__(self) -> None:
        self._ranges: dict[KeyPath, _Range] = {}

    def add(self, table: pa.Table, lines: bytes) -> None:
        """Add the numbers in `lines`. table: the same lines as Arrow's reader returns them."""
        leaves = [leaf for name in table.column_names for leaf in _leaves(table[name], (name,))]
        rounded = any(pa.types.is_float64(values.type) for _, values in leaves)
        if rounded and _LONG.search(lines):
            for line in lines.split(b"\n"):
                if line and not line.isspace():
                    self._walk(_loads(line), ())
            return
        for path, values in leaves:
            if pa.types.is_float64(values.type):
                self._range(path).fractions = True
            elif pa.types.is_int64(values.type):
                ends = pc.min_max(values).as_py()
                self._widen(path, ends["min"] or 0, ends["max"] or 0)

    def type_at(self, path: KeyPath, kind: pa.DataType) -> pa.DataType:
        """The type that holds all numbers of the key at `path`. kind: the type that Arrow chose for all lines."""
        if pa.types.is_struct(kind):
            return pa.struct([(field.name, self.type_at((*path, field.name), field.type)) for field in kind])
        if pa.types.is_list(kind):
            return pa.list_(self.type_at((*path, _ITEM), kind.value_type))
        if not pa.types.is_float64(kind):
            return kind
        numbers = self._range(path)
        if numbers.fractions:
            return kind if max(-numbers.low, numbers.high) <= _EXACT else pa.string()
        return pa.uint64() if numbers.low == 0 and numbers.high < 2**64 else pa.string()

    def _walk(self, value: Any, path: KeyPath) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                self._walk(inner, (*path, name))
        elif isinstance(value, list):
            for inner in value:
                self._walk(inner, (*path, _ITEM))
        elif isinstance(value, _Literal):
            digits = value.lstrip("-")
            if not digits.isdigit():
                self._range(path).fractions = True
                return
            number = int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
            number = -number if value[0] == "-" else number
            self._widen(path, number, number)

    def _widen(self, path: KeyPath, low: int, high: int) -> None:
        numbers = self._range(path)
        numbers.low, numbers.high = min(numbers.low, low), max(numbers.high, high)

    def _range(self, path: KeyPath) -> _Range:
        return self._ranges.setdefault(path, _Range())


def becomes_text(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether numbers have to become text. kind: the type that Arrow's reader returns. wanted: the type of the key."""
    if pa.types.is_struct(kind):
        return any(becomes_text(field.type, wanted.field(field.name).type) for field in kind)
    if pa.types.is_list(kind):
        return becomes_text(kind.value_type, wanted.value_type)
    return bool(pa.types.is_float64(kind) and pa.types.is_string(wanted))


def parse_with_text(lines: bytes, schema: pa.Schema) -> pa.Table:
    """Parse `lines` into a table of `schema`, in which some numbers are text. Slow."""
    rows = [_loads(line) for line in lines.split(b"\n") if line and not line.isspace()]
    columns = []
    for field in schema:
        values = [_to_type(row.get(field.name), field.type) for row in rows]
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def _loads(line: bytes) -> Any:
    return json.loads(line.decode(), parse_int=_Literal, parse_float=_Literal)


def _to_type(value: Any, kind: pa.DataType) -> Any:
    """Convert `value` to what pyarrow accepts for `kind`."""
    if isinstance(value, _Literal):
        if pa.types.is_string(kind):
            return str(value)
        return float(value) if pa.types.is_floating(kind) else int(value)
    if isinstance(value, dict):
        return {name: _to_type(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list):
        return [_to_type(inner, kind.value_type) for inner in value]
    if isinstance(value, str) and pa.types.is_timestamp(kind):
        return pa.scalar(value).cast(kind).value
    return value


def _leaves(values: pa.ChunkedArray, path: KeyPath) -> Iterator[tuple[KeyPath, pa.ChunkedArray]]:
    """The values that are neither objects nor lists, with their paths."""
    if pa.types.is_struct(values.type):
        for field in values.type:
            yield from _leaves(pc.struct_field(values, field.name), (*path, field.name))
    elif pa.types.is_list(values.type):
        yield from _leaves(pc.list_flatten(values), (*path, _ITEM))
    else:
        yield path, values
