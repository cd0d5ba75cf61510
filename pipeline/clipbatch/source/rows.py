"""Arrow batches of names."""

from __future__ import annotations

import pyarrow as pa

from clipbatch.uris import is_text, uri_of

BATCH_ROWS = 65_536
SCHEMA = pa.schema([("uri", pa.string()), ("root", pa.dictionary(pa.int32(), pa.string()))])


def batch(names: list[str], root: str) -> pa.RecordBatch:
    """Rows for `names`, which may hold surrogates in place of bytes that are not UTF-8."""
    try:
        root.encode()
        uris = pa.array(names, pa.string())
    except UnicodeEncodeError:
        uris = pa.array([uri_of(name, root) for name in names], pa.string())
        root = root if is_text(root) else "/"
    indices = pa.repeat(pa.scalar(0, pa.int32()), len(names))
    return pa.record_batch([uris, pa.DictionaryArray.from_arrays(indices, [root])], schema=SCHEMA)
