"""The listing's own columns, and Arrow batches of names."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from clipbatch.uris import is_text, uri_of

BATCH_ROWS = 65_536
SPAN = pa.struct([("container", pa.string()), ("start", pa.int64()), ("length", pa.int64()), ("method", pa.string())])
LISTED = pa.schema([("uri", pa.string()), ("root", pa.dictionary(pa.int32(), pa.string())), ("span", SPAN)])
"""Columns that every lister's batches begin with. `span`: the container of an image that is no file of its own, and
where it stands there (`types.Span`); null for a file."""


def batch(names: list[str], root: str) -> pa.RecordBatch:
    """Rows for files `names`, which may hold surrogates in place of bytes that are not UTF-8."""
    try:
        root.encode()
        uris = pa.array(names, pa.string())
    except UnicodeEncodeError:
        uris = pa.array([uri_of(name, root) for name in names], pa.string())
        root = uri_root(root)
    return listed(uris, root)


def uri_root(root: str) -> str:
    """What rows have as their root: `root`, or `/` where it is not UTF-8 and their uris are `file://` ones."""
    return root if is_text(root) else "/"


def listed(
    uris: pa.Array, root: str, span: pa.Array | None = None, carried: Sequence[tuple[pa.Field, pa.Array]] = ()
) -> pa.RecordBatch:
    """Rows for `uris`, all with the same root, with the carried columns after the listing's own."""
    roots = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(uris)), [root])
    columns = [uris, roots, pa.nulls(len(uris), SPAN) if span is None else span, *(values for _, values in carried)]
    return pa.record_batch(columns, schema=pa.schema([*LISTED, *(field for field, _ in carried)]))
