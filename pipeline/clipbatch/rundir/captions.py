"""The captions of a run: which column of the input holds them, and which of them can be compared with an image.

A caption is a value of a column of text, or a field of one that holds JSON or structs (`COLUMN:FIELD`). One that is
null, empty or no text is no failure of its image: the row has no `caption_similarity`, its status stays `ok`, and the
report counts it with the reason. Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.config.nesting import parse_json
from clipbatch.errors import InputError, nearest
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import CAPTION_EMBEDDING, SIMILARITY, TOKENS, carried_name

# The key of a part's footer with the counts of `count`, and what the compared captions are called in it.
FOOTER, COMPARED = "clipbatch.captions", "compared"
# Why a caption cannot be compared.
NULL, EMPTY, NOT_UTF8, NOT_JSON, NOT_TEXT = "null", "empty", "not UTF-8", "not JSON", "not text"
# Columns of a manifest that are not columns of the input.
_OWN = frozenset(("row_id", "uri", "root", "span"))
# Cosines may exceed 1 by the rounding of float32.
_MAX_SIMILARITY = 1 + 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionColumn:
    """Where the captions are."""

    # As in the manifest and in the parts.
    name: str
    # The field of its JSON or structs; None if the values are the captions.
    field: str | None

    @staticmethod
    def find(spec: str, schema: pa.Schema, *, carried: bool = False) -> CaptionColumn:
        """The column that `--caption-column SPEC` names. schema: of a listing, or of a manifest if `carried`.

        Raises: InputError if there is none, or it cannot hold captions.
        """
        columns = {field.name: field.type for field in schema if field.name not in _OWN}
        whole, (column, _, field) = carried_name(spec, columns), spec.partition(":")
        name = whole or carried_name(column, columns) or carried_name(column.lstrip("."), columns)  # the suffix .txt
        if name is None:
            known = list(columns)
            names = f"the columns are {', '.join(known)}" if known else "it has no columns"
            if carried:
                where, remedy = "the run has carried", "for other captions label the images again with --caption-column"
            else:
                where = "the input has"
                remedy = "for files beside the images of a folder or an archive name their suffix, txt or json:FIELD"
            raise InputError(
                f"{where} no column {column!r}, which --caption-column names: {names}; "
                f"{remedy}.{nearest(column, known)}"
            )
        inner, kind = None if whole else field or None, columns[name]
        if inner is not None and pa.types.is_struct(kind):
            if (at := kind.get_field_index(inner)) < 0:
                raise InputError(
                    f"--caption-column {spec}: column {name!r} has no field {inner!r}: it has "
                    f"{', '.join(known.name for known in kind)}"
                )
            kind = kind.field(at).type
        if not _may_hold_text(kind):
            raise InputError(
                f"--caption-column {spec}: column {name!r} is {columns[name]}, which holds no text: name another one, "
                "or COLUMN:FIELD for a field of JSON"
            )
        return CaptionColumn(name=name, field=inner)

    def read(self, rows: pa.Table) -> list[tuple[str | None, str | None]]:
        """For each of `rows` its caption and None, or None and the reason why there is none."""
        values = rows[self.name]
        in_json = self.field is not None
        if in_json and pa.types.is_struct(values.type):
            values, in_json = pc.struct_field(values, self.field), False
        return [self._caption(value, in_json) for value in _as_bytes(values)]

    def captions(self, rows: pa.Table) -> list[str | None]:
        """The caption of each of `rows`; None if it has none that can be compared."""
        return [caption for caption, _ in self.read(rows)]

    def _caption(self, value: bytes | None, in_json: bool) -> tuple[str | None, str | None]:
        if value is None:
            return None, NULL
        try:
            text: Any = value.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            return None, NOT_UTF8
        if in_json and text.strip():
            try:
                entry = parse_json(text)
            except ValueError:
                return None, NOT_JSON
            text = entry.get(self.field) if isinstance(entry, dict) else None
            if text is None:
                return None, NULL if entry is None or isinstance(entry, dict) else NOT_TEXT
            if not isinstance(text, str):
                return None, NOT_TEXT
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                return None, NOT_UTF8
        return (text, None) if text.strip() else (None, EMPTY)


def column_of(run: RunDir, plan: Plan, schema: pa.Schema | None = None) -> CaptionColumn | None:
    """The column with the captions of a run; None if it has none. schema: of its manifest, if that has been read.

    Raises: InputError if the manifest cannot be read.
    """
    spec = plan.run_settings().source.caption_column
    return None if spec is None else CaptionColumn.find(spec, schema or run.manifest_schema())


def count(table: pa.Table, column: CaptionColumn) -> dict[str, int]:
    """How many captions of ok images were compared, and how many were not, by reason. table: rows of a part."""
    good = table.filter(pc.equal(table["status"].cast(pa.string()), "ok"))
    without = good.filter(pc.is_null(good[SIMILARITY]))
    counts = Counter({COMPARED: good.num_rows - without.num_rows} if good.num_rows > without.num_rows else {})
    counts.update(reason for _, reason in column.read(without) if reason)
    return dict(counts)


def problem(table: pa.Table, ok: pa.ChunkedArray, column: CaptionColumn) -> str | None:
    """What is wrong with the columns of captions in a part, in words; None if nothing is. ok: rows with scores."""
    has_caption = pa.chunked_array([pa.array([caption is not None for caption in column.captions(table)])])
    compared = pc.and_(ok, has_caption)
    names = [SIMILARITY, TOKENS, *([CAPTION_EMBEDDING] if "embedding" in table.column_names else [])]
    for name in names:
        if name not in table.column_names:
            return f"it has no column {name}"
        if not pc.is_valid(table[name]).equals(compared):
            return f"its {name} does not match its status and its column {column.name}"
    within = pc.less_equal(pc.abs(table[SIMILARITY]), pa.scalar(_MAX_SIMILARITY, pa.float32()))
    if not pc.all(within, min_count=0).as_py() or pc.any(pc.is_nan(table[SIMILARITY]), min_count=0).as_py():
        return f"its {SIMILARITY} has values beyond 1 or -1"
    return None


def _may_hold_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _as_bytes(values: pa.ChunkedArray) -> list[bytes | None]:
    """Text or bytes as bytes, which need not be UTF-8."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    raw: list[bytes | None] = values.cast(pa.large_binary() if large else pa.binary()).to_pylist()
    return raw
