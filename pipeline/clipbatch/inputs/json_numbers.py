"""Numbers in JSON lines keep their digits, which Arrow's reader loses beyond int64, where it makes doubles of them.

A key of whole numbers is int64, or uint64 where one needs that and none is negative; beyond that they are text, as in
CSV. So are whole numbers beside others where a double would not hold them exactly. A key may be a field of an object
or a value of a list: it is known by its place, such as `("meta", "ids", "[]")`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Place = tuple[str, ...]

# A whole number that a double may not hold exactly.
_LONG = re.compile(rb"[:\[,\s]-?[0-9]{16,}(?=[,\]}\s]|$)")
_ITEM = "[]"
# Of whole numbers that are compared; longer ones count as one of so many.
_MAX_DIGITS = 40
_EXACT = 2**53


class _Literal(str):
    """A number as it stands in the file."""

    __slots__ = ()


@dataclass(slots=True)
class _Seen:
    """The numbers of a key."""

    low: int = 0
    # The least and the greatest whole number; 0 is taken as one of them.
    high: int = 0
    # Whether there are others.
    fractions: bool = False


class Numbers:
    """What numbers there are in some JSON lines, by their key's place."""

    def __init__(self) -> None:
        self._seen: dict[Place, _Seen] = {}

    def take(self, table: pa.Table, lines: bytes) -> None:
        """table: what Arrow's reader makes of `lines`."""
        leaves = [leaf for name in table.column_names for leaf in _leaves(table[name], (name,))]
        rounded = any(pa.types.is_float64(values.type) for _, values in leaves)
        if rounded and _LONG.search(lines):
            for line in lines.split(b"\n"):
                if line and not line.isspace():
                    self._walk(_loads(line), ())
            return
        for place, values in leaves:
            if pa.types.is_float64(values.type):
                self._at(place).fractions = True
            elif pa.types.is_int64(values.type):
                ends = pc.min_max(values).as_py()
                self._whole(place, ends["min"] or 0, ends["max"] or 0)

    def type_at(self, place: Place, kind: pa.DataType) -> pa.DataType:
        """The type of the key at `place` that holds all of its numbers; `kind`: Arrow's, of all lines together."""
        if pa.types.is_struct(kind):
            return pa.struct([(field.name, self.type_at((*place, field.name), field.type)) for field in kind])
        if pa.types.is_list(kind):
            return pa.list_(self.type_at((*place, _ITEM), kind.value_type))
        if not pa.types.is_float64(kind):
            return kind
        seen = self._at(place)
        if seen.fractions:
            return kind if max(-seen.low, seen.high) <= _EXACT else pa.string()
        return pa.uint64() if seen.low == 0 and seen.high < 2**64 else pa.string()

    def _walk(self, value: Any, place: Place) -> None:
        if isinstance(value, dict):
            for name, inside in value.items():
                self._walk(inside, (*place, name))
        elif isinstance(value, list):
            for inside in value:
                self._walk(inside, (*place, _ITEM))
        elif isinstance(value, _Literal):
            digits = value.lstrip("-")
            if not digits.isdigit():
                self._at(place).fractions = True
                return
            number = int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
            number = -number if value[0] == "-" else number
            self._whole(place, number, number)

    def _whole(self, place: Place, low: int, high: int) -> None:
        seen = self._at(place)
        seen.low, seen.high = min(seen.low, low), max(seen.high, high)

    def _at(self, place: Place) -> _Seen:
        return self._seen.setdefault(place, _Seen())


def differ(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether numbers are to become text, where Arrow's reader makes `kind` and the key is of the type `wanted`."""
    if pa.types.is_struct(kind):
        return any(differ(field.type, wanted.field(field.name).type) for field in kind)
    if pa.types.is_list(kind):
        return differ(kind.value_type, wanted.value_type)
    return bool(pa.types.is_float64(kind) and pa.types.is_string(wanted))


def with_text(lines: bytes, schema: pa.Schema) -> pa.Table:
    """`lines` with the types of `schema`, some of which are text for numbers; slowly."""
    rows = [_loads(line) for line in lines.split(b"\n") if line and not line.isspace()]
    columns = []
    for field in schema:
        values = [_fitted(row.get(field.name), field.type) for row in rows]
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def _loads(line: bytes) -> Any:
    return json.loads(line.decode(), parse_int=_Literal, parse_float=_Literal)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """`value` as pyarrow takes it for `kind`."""
    if isinstance(value, _Literal):
        if pa.types.is_string(kind):
            return str(value)
        return float(value) if pa.types.is_floating(kind) else int(value)
    if isinstance(value, dict):
        return {name: _fitted(inside, kind.field(name).type) for name, inside in value.items()}
    if isinstance(value, list):
        return [_fitted(inside, kind.value_type) for inside in value]
    if isinstance(value, str) and pa.types.is_timestamp(kind):
        return pa.scalar(value).cast(kind).value
    return value


def _leaves(values: pa.ChunkedArray, place: Place) -> Iterator[tuple[Place, pa.ChunkedArray]]:
    """The values that are neither objects nor lists, with their places."""
    if pa.types.is_struct(values.type):
        for field in values.type:
            yield from _leaves(pc.struct_field(values, field.name), (*place, field.name))
    elif pa.types.is_list(values.type):
        yield from _leaves(pc.list_flatten(values), (*place, _ITEM))
    else:
        yield place, values
