"""What the tests of tables share: a listing as a table, and a refusal as one line."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing as listings
from clipbatch.inputs.lister import LISTED


def list_inputs(*inputs: object, **settings: Any) -> pa.Table:
    """The listing of `inputs`, with the columns that a run of the labels would have taken."""
    listers = listings.listers(SourceSettings(inputs=tuple(map(str, inputs)), **settings))
    listing = listings.Listing(listers, settings.get("limit"), ("row_id", "status", "label", "score"))
    return pa.Table.from_batches(listing.batches(), listing.schema)


def carried(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if name not in LISTED.names])


def refused(*inputs: object, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        list_inputs(*inputs, **settings)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def image_table(data: list[bytes | None], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": range(len(data)), "image": pa.array(data, kind or pa.binary())})


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
