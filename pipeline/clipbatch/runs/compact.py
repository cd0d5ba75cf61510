"""Copies the parts of a finished run into a few large files for readers and object stores. Rows and order stay equal.

A file holds whole parts. It is called `part-00000-of-00012.parquet`, so `ls` shows whether all files exist. Each file
is written under another name, read back and compared with the parts row by row, and only then gets its name. So a file
with its name is correct, and the same command continues where it was interrupted. Files end with a checksum, like
parts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.errors import DamagedError, InputError
from clipbatch.rundir import captions
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.part_file import ROW_GROUP_BYTES, PartFile
from clipbatch.rundir.verify import problems
from clipbatch.storage.atomic import remove_leftovers, writing_failed
from clipbatch.storage.paths import AnyPath, StorePath, list_names, parquet_source
from clipbatch.workers import signals

# A file gets parts of about this size together, unless the user says how many rows it is to have.
FILE_BYTES = 2**29
# A row group has at least this many rows, however wide they are.
_MIN_ROWS = 1024
_ROWS_COMPARED = 8_192
_REMEDY = "check this machine's memory and disk, then run the same command again"
_OURS = re.compile(r"part-\d{5,}-of-\d{5,}\.parquet|\..+\.tmp")


class Compacted(TypedDict):
    """The result of `compact`: how many rows, parts and files, and the folder of the files."""

    rows: int
    parts: int
    files: int
    out: str


def compact(run: RunDir, out: AnyPath, rows_per_file: int | None, *, row_group_rows: int | None = None) -> Compacted:
    """See `runs.run.compact`. row_group_rows: rows of a row group; None: as many as have about `ROW_GROUP_BYTES`."""
    plan = run.plan()
    if rows_per_file is not None and rows_per_file < 1:
        raise InputError(f"--rows-per-file {rows_per_file} is out of range: use 1 or more")
    done = len(run.done(plan))
    if done < plan.shards or (fingerprint := run.fingerprint()) is None:
        raise InputError(
            f"{run.path} is not finished ({done} of {plan.shards} parts): clipbatch run --out {run.path} first"
        )
    files = _cut(run, plan, rows_per_file)
    targets = [out / f"part-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))]
    _check_folder(out, {target.name for target in targets})
    counted = count_statuses(run, plan, range(plan.shards))
    for number, (target, shards) in enumerate(zip(targets, files, strict=True)):
        footer = {"clipbatch.shards": f"{shards[0]}-{shards[-1]}", "clipbatch.file": f"{number} of {len(files)}"}
        counts = sum((Counter(counted[shard]) for shard in shards), Counter())
        if not _is_done(target, fingerprint, {**footer, "clipbatch.counts": json.dumps(counts, sort_keys=True)}):
            _write(run, plan, target, shards, footer, row_group_rows)
    sizes = [len(plan.shard_rows(shard)) for shards in files for shard in shards]
    return {"rows": sum(sizes), "parts": plan.shards, "files": len(files), "out": str(out)}


def _cut(run: RunDir, plan: Plan, rows_per_file: int | None) -> list[Sequence[int]]:
    """The shards of each file: as many whole shards as fit."""
    each = (rows_per_file or 0) // plan.shard_size
    if rows_per_file is None:
        each = FILE_BYTES // max(1, _size(run.part(0, plan.shards)))
    each = max(1, each)
    return [range(plan.shards)[at : at + each] for at in range(0, plan.shards, each)]


def _size(file: AnyPath) -> int:
    if isinstance(file, StorePath):
        with file.open_input() as opened:
            return int(opened.size())
    return file.stat().st_size


def _check_folder(out: AnyPath, expected: set[str]) -> None:
    """Create the folder. Raises: InputError if it holds other files."""
    try:
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        strangers = sorted(name for name in list_names(out) - expected if not name.endswith(".tmp"))
    except OSError as error:
        raise writing_failed(out, error) from error
    if strangers:
        cut = "; it was begun with another --rows-per-file" if _OURS.fullmatch(strangers[0]) else ""
        raise InputError(
            f"the output folder {out} holds other files ({strangers[0]!r} ...{cut}): choose a new or empty folder"
        )


def _is_done(target: AnyPath, fingerprint: str, footer: dict[str, str]) -> bool:
    """Whether the file exists, is intact and holds the current parts (rows that are done again change the counts).

    Raises: InputError if it belongs to another run; it must not be overwritten then.
    """
    if not target.exists():
        return False
    try:
        metadata = pq.read_metadata(parquet_source(target)).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    if metadata.get(b"clipbatch.fingerprint") != fingerprint.encode():
        raise InputError(f"{target} belongs to another run: choose a new or empty folder")
    expected = {key.encode(): value.encode() for key, value in footer.items()}
    return expected.items() <= metadata.items() and verify_file(target.read_bytes())


def _write(
    run: RunDir,
    plan: Plan,
    target: AnyPath,
    shards: Sequence[int],
    footer: dict[str, str],
    row_group_rows: int | None,
) -> None:
    """Raises: DamagedError if a part is damaged, or the file does not read back as it was written."""
    wrong = [text for _, text in problems(run, plan, shards)]
    if wrong:
        raise DamagedError(f"{wrong[0]}\nremedy: clipbatch run --out {run.path} --repair")
    counts: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    spec = plan.run_settings().source.caption_column
    column = None if spec is None else captions.CaptionColumn.find(spec, run.manifest_schema())
    inherited: dict[str, str] = {}
    with pq.ParquetFile(parquet_source(run.part(shards[0], plan.shards))) as first:
        schema = first.schema_arrow
        row_bytes = sum(_width(field.type) for field in schema)
        inherited = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if k != b"clipbatch.shard"}
    with PartFile(target, schema.with_metadata(inherited | footer), plan.run_settings().output.compression) as file:
        for table in _row_groups(run, plan, shards, row_group_rows or max(_MIN_ROWS, ROW_GROUP_BYTES // row_bytes)):
            signals.check()
            file.write(table)
            counted = table["status"].value_counts().to_pylist()
            counts.update({entry["values"]: entry["counts"] for entry in counted})
            if column:
                compared.update(captions.count(table, column))
        of_captions = {} if column is None else {captions.FOOTER: json.dumps(compared, sort_keys=True)}
        file.close(
            {"clipbatch.counts": json.dumps(counts, sort_keys=True), **of_captions},
            check=lambda written: check_copy(written, run, plan, shards, target),
        )


def _row_groups(run: RunDir, plan: Plan, shards: Sequence[int], rows: int) -> Iterator[pa.Table]:
    """The rows of the parts in tables of `rows` rows; the last table may be shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for shard in shards:
        with pq.ParquetFile(parquet_source(run.part(shard, plan.shards))) as part:
            for number in range(part.num_row_groups):
                table = part.read_row_group(number)
                while count + table.num_rows >= rows:
                    head = table.slice(0, rows - count)
                    yield _joined([*waiting, head])
                    table, waiting, count = table.slice(head.num_rows), [], 0
                if table.num_rows:
                    waiting.append(table)
                    count += table.num_rows
    if waiting:
        yield _joined(waiting)


def _joined(tables: list[pa.Table]) -> pa.Table:
    plain = [table.replace_schema_metadata(None) for table in tables]
    return pa.concat_tables(plain).unify_dictionaries().combine_chunks()


def check_copy(written: Any, run: RunDir, plan: Plan, shards: Sequence[int], target: AnyPath) -> None:
    """Raises: DamagedError unless a file has the same rows as the parts of `shards`, in the same order.

    written: the file, as pyarrow reads it. target: its name, for the error.
    """
    file = pq.ParquetFile(written, page_checksum_verification=True)
    parts = (
        table for shard in shards for table in _pieces(pq.ParquetFile(parquet_source(run.part(shard, plan.shards))))
    )
    copied = _Rows(_pieces(file))
    for table in parts:
        if not _plain(copied.take(table.num_rows)).equals(_plain(table)):
            raise DamagedError(f"{target}: the rows read back are not those of the parts: {_REMEDY}")
    if copied.take(1).num_rows:
        raise DamagedError(f"{target}: more rows are read back than the parts have: {_REMEDY}")


def _pieces(file: pq.ParquetFile) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for batch in file.iter_batches(_ROWS_COMPARED))


class _Rows:
    """A sequence of tables from which any number of rows can be taken."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables, self._left = tables, next(tables)

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, or all that are left if there are fewer."""
        while self._left.num_rows < count and (more := next(self._tables, None)) is not None:
            self._left = pa.concat_tables([self._left, more])
        rows, self._left = self._left.slice(0, count), self._left.slice(count)
        return rows


def _plain(table: pa.Table) -> pa.Table:
    """`table` with strings in place of dictionaries, whose order does not matter, and each column in one piece."""
    schema = pa.schema(
        [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in table.schema
        ]
    )
    return table.cast(schema).combine_chunks()


def _width(kind: pa.DataType) -> int:
    """Bytes of a value in memory; 8 if that depends on the value."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return int(max(1, kind.bit_width // 8))
    except ValueError:
        return 8
