"""Read a shard's rows back from the run directory's manifest, refusing one that was edited since it was frozen."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.errors import InputError
from clipbatch.places import parquet_source
from clipbatch.rundir import Plan, RunDir, file_sha256
from clipbatch.types import Item, Reject, Span
from clipbatch.uris import is_outside, path_of


class Manifest:
    """The rows of a run, read a few row groups at a time. Used by one thread."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self._number = -1
        self._file: pq.ParquetFile | None = None
        self._starts: list[int] = []
        self._fence = plan.run_settings().source.root

    def rows(self, shard: int) -> pa.Table:
        """The manifest rows of `shard`, with all their columns.

        Raises: InputError where the manifest is not the one that was frozen.
        """
        wanted = self._plan.shard_rows(shard)
        number, first = divmod(wanted.start, self._plan.manifest_rows)
        file = self._open(number)
        groups = [
            group
            for group, start in enumerate(self._starts[:-1])
            if start < first + len(wanted) and self._starts[group + 1] > first
        ]
        table = file.read_row_groups(groups)
        return table.slice(first - self._starts[groups[0]], len(wanted))

    def items(self, rows: pa.Table) -> list[Item]:
        """The rows of a shard, or some of them, as items to read."""
        columns = (rows[name].to_pylist() for name in ("row_id", "uri", "root", "span"))
        return [self._item(row_id, uri, root, span) for row_id, uri, root, span in zip(*columns, strict=True)]

    def _item(self, row_id: int, uri: str, root: str, span: dict[str, Any] | None) -> Item:
        if span is None:
            path = path_of(uri, root)
            fence = self._fence if root == self._fence else None
            reject = None
            if fence is not None and is_outside(path, fence):
                reject = Reject(status="unreadable", error=f"outside of --root {fence}")
            return Item(row_id=row_id, uri=uri, path=path, fence=fence, reject=reject)
        where = Span(start=span["start"], length=span["length"], method=span["method"])
        return Item(row_id=row_id, uri=uri, path=path_of(span["container"], root), span=where)

    def _open(self, number: int) -> pq.ParquetFile:
        if self._file is None or self._number != number:
            path = self._run.manifest / f"part-{number:05d}.parquet"
            try:
                digest = file_sha256(path)
            except OSError as error:
                raise InputError(f"cannot read the manifest {path}: {error.strerror}; restore it") from error
            if digest != self._plan.manifest_sha256.get(path.name):
                raise InputError(
                    f"the manifest {path} was changed after the run began: restore it, or start again with --overwrite"
                )
            self._file, self._number = pq.ParquetFile(parquet_source(path)), number
            sizes = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
            self._starts = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
        return self._file
