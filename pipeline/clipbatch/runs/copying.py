"""Copies rows of parts into larger Parquet files. A file is read back and compared before it gets its name.

This module does not know which files there are to be, or what they are called.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.errors import DamagedError, InputError
from clipbatch.rundir import captions
from clipbatch.rundir.captions import CaptionColumn
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.part_file import PartFile, rows_per_group
from clipbatch.rundir.verify import problems
from clipbatch.storage.paths import AnyPath, StorePath, parquet_source
from clipbatch.workers import signals

# A file gets about so many bytes, unless the user says how many rows it is to have.
FILE_BYTES = 2**29
_ROWS_COMPARED = 8_192
_REMEDY = "check this machine's memory and disk, then run the same command again"

# The rows of a file, in tables of any size. Called twice: to write the file, and to compare it.
Tables = Callable[[], Iterable[pa.Table]]


class Compacted(TypedDict):
    """The result of `compact`. rows, parts: what was copied. files: how many there are now, in the folder `out`.
    source_may_be_deleted: whether `out` has all that the source has."""

    rows: int
    parts: int
    files: int
    out: str
    source_may_be_deleted: bool


def check_rows_per_file(rows_per_file: int | None) -> None:
    """Raises: InputError for a number below 1."""
    if rows_per_file is not None and rows_per_file < 1:
        raise InputError(f"--rows-per-file {rows_per_file} is out of range: use 1 or more")


def check_finished(run: RunDir, plan: Plan) -> str:
    """The fingerprint of a finished run. Raises: InputError if it is not finished."""
    done = len(run.done(plan))
    if done < plan.shards or (fingerprint := run.fingerprint()) is None:
        raise InputError(
            f"{run.path} is not finished ({done} of {plan.shards} parts): clipbatch run --out {run.path} first"
        )
    return fingerprint


def shards_per_file(run: RunDir, plan: Plan, rows_per_file: int | None) -> int:
    """How many whole shards a file gets: as many as fit, but at least one and at most all."""
    if rows_per_file is None:
        each = FILE_BYTES // max(1, size_of(run.part(0, plan.shards)))
    else:
        each = rows_per_file // plan.shard_size
    return min(max(1, each), plan.shards)


def size_of(file: AnyPath) -> int:
    """The size of a file, in bytes."""
    if isinstance(file, StorePath):
        with file.open_input() as opened:
            return int(opened.size())
    return file.stat().st_size


def check_parts(run: RunDir, plan: Plan, shards: Sequence[int]) -> None:
    """Raises: DamagedError if a part is damaged."""
    wrong = [text for _, text in problems(run, plan, shards)]
    if wrong:
        raise DamagedError(f"{wrong[0]}\nremedy: clipbatch run --out {run.path} --repair")


def schema_of(run: RunDir, plan: Plan, shard: int) -> pa.Schema:
    """The columns of a part, with what its footer says of all parts alike."""
    with pq.ParquetFile(parquet_source(run.part(shard, plan.shards))) as part:
        schema = part.schema_arrow
    return schema.with_metadata({k: v for k, v in (schema.metadata or {}).items() if k != b"clipbatch.shard"})


def with_footer(schema: pa.Schema, footer: Mapping[str, str]) -> pa.Schema:
    """`schema` with `footer` among its metadata."""
    before = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return schema.with_metadata(before | dict(footer))


def tables_of(run: RunDir, plan: Plan, shards: Iterable[int]) -> Iterator[pa.Table]:
    """The row groups of the parts of `shards`."""
    for shard in shards:
        with pq.ParquetFile(parquet_source(run.part(shard, plan.shards))) as part:
            for number in range(part.num_row_groups):
                yield part.read_row_group(number)


def is_written(target: AnyPath, fingerprint: str, footer: Mapping[str, str]) -> bool:
    """Whether the file exists, is intact, and its footer has `footer`.

    Raises: InputError if its fingerprint is another one; it must not be overwritten then.
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


def counts_json(counts: Mapping[str, int]) -> str:
    """Rows by status, as footers have them."""
    return json.dumps(counts, sort_keys=True)


def write(
    target: AnyPath,
    schema: pa.Schema,
    tables: Tables,
    compression: str,
    *,
    row_group_rows: int | None = None,
    column: CaptionColumn | None = None,
) -> None:
    """Write a file of `schema`, whose metadata go to its footer, read it back and publish it.

    row_group_rows: rows of a row group; None: as many as `rows_per_group` says. column: that of the captions, if there
    are any.
    Raises: DamagedError if the file does not read back as it was written; InputError if it cannot be written.
    """
    counts: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    rows = row_group_rows or rows_per_group(sum(_width(field.type) for field in schema))
    with PartFile(target, schema, compression) as file:
        for table in regrouped(tables(), rows):
            signals.check()
            file.write(table)
            counted = table["status"].value_counts().to_pylist()
            counts.update({entry["values"]: entry["counts"] for entry in counted})
            if column:
                compared.update(captions.count(table, column))
        footer = {"clipbatch.counts": counts_json(counts)}
        if column:
            footer[captions.FOOTER] = counts_json(compared)
        file.close(footer, check=lambda written: check_copy(written, tables(), target))


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows; the last table may be shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
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


def check_copy(written: Any, tables: Iterable[pa.Table], target: AnyPath) -> None:
    """Raises: DamagedError unless a file has the rows of `tables`, in the same order.

    written: the file, as pyarrow reads it. target: its name, for the error.
    """
    copied = _Rows(_pieces(pq.ParquetFile(written, page_checksum_verification=True)))
    for table in tables:
        for start in range(0, table.num_rows, _ROWS_COMPARED):
            piece = table.slice(start, _ROWS_COMPARED)
            if not _comparable(copied.take(piece.num_rows)).equals(_comparable(piece)):
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


def _comparable(table: pa.Table) -> pa.Table:
    """`table` with strings in place of dictionaries, whose order does not matter, and whole numbers of the same bits in
    place of floats, since NaN does not equal NaN. Each column is in one piece."""
    schema = pa.schema(
        [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in table.schema
        ]
    )
    columns = [column.combine_chunks() for column in table.cast(schema).combine_chunks()]
    return pa.table([column.view(_bits(column.type)) for column in columns], schema.names)


def _bits(kind: pa.DataType) -> pa.DataType:
    """`kind` with whole numbers of the same size in place of floats, also in lists and structs."""
    if isinstance(kind, pa.BaseExtensionType):
        return _bits(kind.storage_type)
    if pa.types.is_floating(kind):
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[kind.bit_width]
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bits(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_bits(kind.key_type), _bits(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_bits(kind.value_type)), kind.list_size)
    for is_list, list_of in (
        (pa.types.is_list, pa.list_),
        (pa.types.is_large_list, pa.large_list),
        (pa.types.is_list_view, pa.list_view),
        (pa.types.is_large_list_view, pa.large_list_view),
    ):
        if is_list(kind):
            return list_of(kind.value_field.with_type(_bits(kind.value_type)))
    return kind


def _width(kind: pa.DataType) -> int:
    """Bytes of a value in memory; 8 if that depends on the value."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return int(max(1, kind.bit_width // 8))
    except ValueError:
        return 8
