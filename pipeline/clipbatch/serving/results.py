"""The answer of a Classifier: an Arrow table that notebooks display."""

from __future__ import annotations

from html import escape
from typing import Any

import pyarrow as pa

_SHOWN_ROWS = 20
_SHOWN_COLUMNS = ("row_id", "uri", "status", "error", "width", "height")


class Results:
    """One row for each image, in order, with the columns of a run's parts.

    `row_id` counts the images of the call from 0. `uri` is the name that the caller passed, null for images in memory.
    `status` is `ok`, or says together with `error` why an image has no scores. Every library that accepts Arrow data
    accepts a `Results`: `polars.DataFrame(results)`, `pyarrow.table(results)`, DuckDB by the name of the variable.
    """

    def __init__(self, table: pa.Table) -> None:
        # The rows as a `pyarrow.Table`.
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def numbered(self, first: int) -> Results:
        """The same rows, with `row_id` counted from `first`."""
        row_ids = pa.array(range(first, first + len(self)), pa.int64())
        return Results(self.table.set_column(0, self.table.schema.field(0), row_ids))

    def to_pylist(self) -> list[dict[str, Any]]:
        """The rows as a list of dicts."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame. pandas must be installed."""
        return self.table.to_pandas()

    def __repr__(self) -> str:
        bad = sum(status != "ok" for status in self.table["status"].to_pylist())
        return f"<Results: {len(self)} images, {bad} bad; columns {', '.join(self.table.column_names)}>"

    def _repr_html_(self) -> str:
        """The first rows as HTML, without the lists of scores."""
        names = [
            field.name
            for field in self.table.schema
            if field.name in _SHOWN_COLUMNS or pa.types.is_dictionary(field.type) or pa.types.is_float32(field.type)
        ]
        shown = self.table.select(names).slice(0, _SHOWN_ROWS).to_pylist()
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in shown
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(repr(self))}</p>"


def _cell(value: Any) -> str:
    return "" if value is None else escape(f"{value:.4f}" if isinstance(value, float) else str(value))
