"""Write the manifest of a run, and read its rows shard by shard. A manifest that was changed later is refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.errors import InputError
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import file_sha256, publish
from clipbatch.storage.paths import parquet_source
from clipbatch.storage.uris import is_outside, path_of
from clipbatch.types import Item, Reject, Span

# Size of a column's dictionary per row group, above which the column is written without one. Names and ids do not
# repeat, and building a dictionary of all of them would take longer than the rest of writing.
_DICTIONARY_BYTES = 2**15
# A row group with so many bytes ends, whatever its number of rows: captions and other columns may hold long texts.
_GROUP_BYTES = 2**27


class ManifestWriter:
    """Numbers the rows of a listing and writes them to `part-*.parquet`. Keeps one row group in memory.

    Use it as a context manager, which finishes the last file. Raises: OSError if writing fails; InputError for a value
    that Parquet cannot hold.
    """

    def __init__(self, folder: Path, file_rows: int, group_rows: int) -> None:
        """file_rows, group_rows: rows per file, and per row group unless its rows are large."""
        self._folder, self._file_rows, self._group_rows = folder, file_rows, group_rows
        self._waiting: list[pa.RecordBatch] = []
        # Rows and bytes of `_waiting`.
        self._count = self._bytes = 0
        self._file: contextlib.ExitStack | None = None
        # Number of rows written so far.
        self.rows = 0
        # sha256 of each file, by name. Complete when the context has ended.
        self.digests: dict[str, str] = {}

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *failed: Any) -> None:
        if failed[0] is None and self._waiting:
            self._write_group()
        if self._file is not None:
            self._file.__exit__(*failed)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows. All batches must have the same columns."""
        while batch.num_rows:
            row = self.rows % self._file_rows
            full = min(self._group_rows - row % self._group_rows, self._file_rows - row)
            head = batch.slice(0, full - self._count)
            self._waiting.append(head)
            self._count += head.num_rows
            self._bytes += head.nbytes
            batch = batch.slice(head.num_rows)
            if self._count == full or self._bytes >= _GROUP_BYTES:
                self._write_group()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._waiting).unify_dictionaries()
        row_ids = pa.array(np.arange(self.rows, self.rows + table.num_rows))
        table = table.add_column(0, "row_id", row_ids)
        if self._file is None:
            self._begin(table.schema)
        try:
            self._writer.write_table(table, self._group_rows)
        except pa.ArrowInvalid as error:  # Parquet has no timestamps in seconds, and converting to milliseconds failed
            last = self.rows + table.num_rows - 1
            raise InputError(
                f"rows {self.rows} to {last} hold a value that Parquet cannot hold: {error}; leave its column out with "
                "--columns"
            ) from error
        self.rows += table.num_rows
        self._waiting, self._count, self._bytes = [], 0, 0
        if self._file is not None and self.rows % self._file_rows == 0:
            self._file.close()
            self._file = None

    def _begin(self, schema: pa.Schema) -> None:
        """Open the next file."""
        path = self._folder / f"part-{self.rows // self._file_rows:05d}.parquet"
        with contextlib.ExitStack() as stack:
            file = _Digesting(stack.enter_context(publish(path)))
            stack.callback(lambda: self.digests.update({path.name: file.digest.hexdigest()}))
            options = {"compression": "zstd", "dictionary_pagesize_limit": _DICTIONARY_BYTES}
            self._writer = stack.enter_context(pq.ParquetWriter(file, schema, **options))
            self._file = stack.pop_all()


class _Digesting(io.RawIOBase):
    """A file object that computes the digest of what is written through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._to, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._to.write(data)


class Manifest:
    """Reads the manifest of a run, a few row groups at a time. Not thread-safe."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self._number = -1
        self._file: pq.ParquetFile | None = None
        self._starts: list[int] = []
        self._fence = plan.run_settings().source.root

    def rows(self, shard: int) -> pa.Table:
        """The manifest rows of `shard`, with all columns. Raises: InputError if the manifest file was changed."""
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

    def check(self, shard: int) -> None:
        """Raises: InputError if the file with the rows of `shard` was changed since the run was planned."""
        self._open(self._plan.shard_rows(shard).start // self._plan.manifest_rows)

    def items(self, rows: pa.Table) -> list[Item]:
        """Convert manifest rows to items for the read stage."""
        columns = (rows[name].to_pylist() for name in ("row_id", "uri", "root", "span"))
        return [self._item(row_id, uri, root, span) for row_id, uri, root, span in zip(*columns, strict=True)]

    def _item(self, row_id: int, uri: str, root: str, span: dict[str, Any] | None) -> Item:
        if not uri:
            no_image = Reject(status="missing", error="the row names no image")
            return Item(row_id=row_id, uri=uri, path="", reject=no_image)
        if span is None:
            path = path_of(uri, root)
            if self._fence is None or root != self._fence:
                return Item(row_id, uri, path)
            reject = Reject(status="unreadable", error=f"outside of --root {root}") if is_outside(path, root) else None
            return Item(row_id, uri, path, fence=root, reject=reject)
        place = Span(start=span["start"], length=span["length"], method=span["method"])
        return Item(row_id=row_id, uri=uri, path=path_of(span["container"], root), span=place)

    def _open(self, number: int) -> pq.ParquetFile:
        if self._file is None or self._number != number:
            path = self._run.manifest / f"part-{number:05d}.parquet"
            try:
                digest = file_sha256(path)
            except OSError as error:
                raise InputError(
                    f"cannot read the manifest {path}: {error.strerror}; restore it from a backup"
                ) from error
            if digest != self._plan.manifest_sha256.get(path.name):
                raise InputError(
                    f"the manifest {path} was changed after the run began: restore it from a backup, or plan the same "
                    "input in another folder and copy it from there"
                )
            self._file, self._number = pq.ParquetFile(parquet_source(path)), number
            if (rows := self._file.metadata.num_rows) != self._plan.file_rows(number):
                raise InputError(
                    f"{self._run.plan_file} is damaged: it expects {self._plan.file_rows(number)} rows in the manifest "
                    f"{path}, which has {rows}; restore run.json from a backup"
                )
            sizes = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
            self._starts = [sum(sizes[:group]) for group in range(len(sizes) + 1)]
        return self._file
