"""Let Spark read files that hold float16, a type which it refuses to infer a schema from (4.x, PARQUET_TYPE_ILLEGAL).

Spark goes by the schema in a footer under its own key where there is one. Files with float16 get one that leaves these
columns out; all others get none, and Spark infers what it likes. Knows nothing of what columns mean.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

_KEY = "org.apache.spark.sql.parquet.row.metadata"
_NAMES = {
    pa.bool_(): "boolean",
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.uint8(): "short",
    pa.uint16(): "integer",
    pa.uint32(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "binary",
    pa.large_binary(): "binary",
    pa.date32(): "date",
}


def footer(schema: pa.Schema) -> dict[str, str]:
    """What to add to the footer of a file of `schema`. Columns that Spark has no type for are not in it."""
    if not any(_holds_half(field.type) for field in schema):
        return {}
    fields = [_field(field.name, kind) for field in schema if (kind := _type(field.type)) is not None]
    return {_KEY: json.dumps({"type": "struct", "fields": fields})}


def _holds_half(kind: pa.DataType) -> bool:
    return pa.types.is_float16(kind) or any(_holds_half(kind.field(n).type) for n in range(kind.num_fields))


def _field(name: str, kind: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": True, "metadata": {}}


def _type(kind: pa.DataType) -> Any:
    """Spark's type as JSON, or None where it has none for `kind`, which may be that of a user's own column."""
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _type(kind.value_type)
        return inner and {"type": "array", "elementType": inner, "containsNull": True}
    if pa.types.is_struct(kind):
        inner = [(field.name, _type(field.type)) for field in kind]
        known = [_field(name, found) for name, found in inner if found is not None]
        return {"type": "struct", "fields": known} if known else None
    if pa.types.is_decimal128(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind) and kind.unit in ("ms", "us"):
        return "timestamp" if kind.tz else "timestamp_ntz"
    return _NAMES.get(kind)
