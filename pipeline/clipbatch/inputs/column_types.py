"""The types of carried columns: those that every reader of Parquet takes, and casts by which nothing is lost.

    as it came                       as it is written
    timestamp                        timestamp in us; in UTC if it has a time zone
    time of day                      text, as 01:02:03
    date64                           date32
    decimal32, 64 and 256            decimal128; text if it has more than 38 digits
    map                              list of structs of key and value
    string_view, binary_view         string, binary
    list_view                        list, but not inside of other types
    a dictionary of no text          its values
    a list or struct of these        the same inside
    any other                        the same

Runs that were planned by older versions keep the types of their plan.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MAX_DIGITS = 38  # of a decimal, for Spark and Polars


class LossError(ValueError):
    """A value cannot become one of another type without a loss. The message is the value. row: its number, from 0."""

    def __init__(self, row: int, shown: str) -> None:
        super().__init__(shown)
        self.row = row


def portable(kind: pa.DataType) -> pa.DataType:
    """The type as which values of type `kind` are written."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    if pa.types.is_time(kind):
        return pa.string()
    if pa.types.is_date(kind):
        return pa.date32()
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _MAX_DIGITS else pa.string()
    if pa.types.is_dictionary(kind):
        inner = portable(kind.value_type)  # Parquet keeps dictionaries of text alone
        return kind if inner == kind.value_type and pa.types.is_string(inner) else inner
    if pa.types.is_map(kind):
        entry = pa.struct([_inside(kind.key_field).with_name("key"), _inside(kind.item_field).with_name("value")])
        return pa.list_(entry)
    if pa.types.is_struct(kind):
        return pa.struct([_inside(field) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_inside(kind.value_field), kind.list_size)
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_inside(kind.value_field))
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_inside(kind.value_field))
    return kind


def _inside(field: pa.Field) -> pa.Field:
    """A field of a list or struct. A list view stays one there."""
    if pa.types.is_list_view(field.type) or pa.types.is_large_list_view(field.type):
        return field
    return field.with_type(portable(field.type))


def widest(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """A type for the values of both types, which is portable where they differ: text where no other one takes both."""
    if left == right:
        return left
    try:
        schemas = [pa.schema([pa.field("", kind)]) for kind in (left, right)]
        return portable(pa.unify_schemas(schemas, promote_options="permissive").field(0).type)
    except pa.ArrowException:
        return pa.string()


def to_portable(values: pa.Array) -> tuple[pa.Array, int]:
    """`values` as their portable type, and how many of them lost what is smaller than a microsecond.

    Raises: LossError for a value that the type cannot hold.
    """
    if pa.types.is_list_view(values.type) or pa.types.is_large_list_view(values.type):
        values = _as_list(values)
    kind = portable(values.type)
    try:
        return values.cast(kind), 0
    except pa.ArrowInvalid:
        if _units(values.type) - {"us"} != {"ns"}:
            return cast_whole(values, kind), 0
    cut = pc.cast(values, kind, safe=False)
    if values.type.num_fields:
        return cut, len(values) - values.null_count
    return cut, pc.sum(pc.not_equal(cut.cast(values.type), values)).as_py() or 0


def _as_list(values: pa.Array) -> pa.Array:
    """A list of each list view. pyarrow 26 casts them to lists whose offsets are too short."""
    large = pa.types.is_large_list_view(values.type)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy()
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int64() if large else pa.int32())
    kind = pa.LargeListArray if large else pa.ListArray
    return kind.from_arrays(offsets, values.flatten(), mask=values.is_null())


def _units(kind: pa.DataType) -> set[str]:
    """The units of all times of day and time stamps in `kind`."""
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        return {kind.unit}
    return set().union(*(_units(kind.field(at).type) for at in range(kind.num_fields)))


def cast_whole(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """`values` as type `kind`. Raises: LossError for the first value that would be lost or changed."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if (cast := _cast(values, kind)) is not None:
        return cast
    for row in range(len(values)):
        if _cast(values.slice(row, 1), kind) is None:
            raise LossError(row, _shown(values[row]))
    raise LossError(0, _shown(values[0]))


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """`values` as type `kind`; None if that loses something, so that casting back does not give them again."""
    try:
        cast = values.cast(kind)
        back = cast.cast(values.type)
        return cast if back.equals(values) or _same(back, values) else None
    except pa.ArrowException:
        return None


def _same(left: pa.Array, right: pa.Array) -> bool:
    """Whether values are equal, where NaN is equal to NaN."""
    pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
    return all(a == b or (a != a and b != b) for a, b in pairs)


def _shown(value: pa.Scalar) -> str:
    try:
        text = repr(value.as_py())
    except (ValueError, OverflowError):  # a time that Python does not know
        return f"a {value.type} out of range"
    return text if len(text) <= 80 else f"{text[:77]}..."
