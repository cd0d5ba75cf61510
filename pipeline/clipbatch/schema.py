"""The columns of a part: which there are, of which type, in which order. Knows nothing of how they are filled."""

from __future__ import annotations

import pyarrow as pa

from clipbatch.config import OutputSettings

WORDS = pa.dictionary(pa.int32(), pa.string())
LISTING = ("root", "span")
"""Columns of the manifest that no part has: how the input was listed."""


def result_fields(labels: list[str], output: OutputSettings, embedding: int) -> list[pa.Field]:
    """The columns beside those of the manifest. embedding: its length, where it is wanted."""
    if output.best:
        entry = pa.struct([("label", pa.string()), ("score", pa.float32())])
        scores = pa.field("top", pa.list_(entry))
    else:
        scores = pa.field("scores", pa.list_(pa.float32(), len(labels)))
    fields = [
        pa.field("status", WORDS, nullable=False),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("decoder", WORDS),
        pa.field("label", WORDS),
        pa.field("score", pa.float32()),
        scores,
    ]
    if output.embeddings:
        fields.append(pa.field("embedding", pa.list_(pa.float16(), embedding)))
    return fields


def part_schema(results: list[pa.Field], carried: pa.Schema) -> pa.Schema:
    """The schema of a part. carried: that of the manifest; its own columns come last, under their names."""
    first = [pa.field("row_id", pa.int64(), nullable=False), pa.field("uri", pa.string(), nullable=False)]
    own = ("row_id", "uri", *LISTING)
    return pa.schema([*first, *results, *(field for field in carried if field.name not in own)])
