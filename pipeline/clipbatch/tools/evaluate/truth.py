"""What the images really show, row by row: from a column of the run's input, or from a file.

A file is CSV, TSV or Parquet with a column `row_id` or `uri`, and one with the truth: `truth`, or the only other one.
Where an image may have several labels, the truth is a list of texts, in CSV as `dog|cat` or as JSON. An empty truth is
none: nobody has answered. A file that `clipbatch review` made has weights too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.errors import InputError, nearest
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import carried_name, group_columns, result_fields
from clipbatch.storage.paths import parquet_source
from clipbatch.tools.evaluate.truth_files import QUEUE, named, read_mapping, read_table
from clipbatch.workers import signals

NO_TRUTH = -1
_KEYS = ("row_id", "uri")
_BATCH_ROWS = 2**20


@dataclass(slots=True, kw_only=True)
class Truth:
    """The truth of every row of a run."""

    # Where it comes from, in words.
    source: str
    # The different values.
    names: list[str] = field(default_factory=list)
    # For each row, the number of its value in `names`; `NO_TRUTH` for none. If an image may have several labels: the
    # number of its list in `lists`.
    codes: NDArray[np.int32]
    # The different lists of values, as numbers of `names`.
    lists: list[tuple[int, ...]] | None = None
    # For a review queue: stratum and weight of each of its rows, answered or not, by row_id.
    weights: dict[int, tuple[str, float]] | None = None
    # Rows of the file that the run does not have.
    not_in_run: int = 0

    @property
    def rows(self) -> int:
        """How many rows have a truth."""
        return int((self.codes != NO_TRUTH).sum())


class _Coder:
    """Numbers values in the order of their first appearance."""

    def __init__(self, mapping: Mapping[str, str], several: bool) -> None:
        """mapping: other names for values. several: each value is a list."""
        self._mapping, self._several = mapping, several
        self.names: dict[str, int] = {}
        self.lists: dict[tuple[int, ...], int] = {}

    def codes(self, column: pa.Array) -> NDArray[np.int32]:
        """The numbers of the values of `column`; `NO_TRUTH` for null and empty ones."""
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            if not self._several:
                raise InputError(
                    "the truth holds lists, and an image of this run has one label at most: give one truth for each "
                    "image, or label with multiple = true"
                )
            values = [None if value is None else self._list([str(v) for v in value]) for value in column.to_pylist()]
            return np.array([NO_TRUTH if value is None else value for value in values], np.int32)
        encoded = _as_text(column).dictionary_encode()
        numbers = [self._value(text) for text in encoded.dictionary.to_pylist()]
        numbers.append(NO_TRUTH)
        indices = np.asarray(pc.fill_null(encoded.indices, len(numbers) - 1))
        return np.asarray(np.array(numbers, np.int32)[indices])

    def _value(self, text: str) -> int:
        text = text.strip()
        if not self._several:
            return self._name(text) if text not in ("", "[]") else NO_TRUTH
        if not text:
            return NO_TRUTH
        return self._list(_parsed_list(text))

    def _list(self, values: list[str]) -> int:
        codes = tuple(sorted({self._name(value.strip()) for value in values if value.strip()}))
        return self.lists.setdefault(codes, len(self.lists))

    def _name(self, value: str) -> int:
        return self.names.setdefault(self._mapping.get(value, value), len(self.names))


def load(run: RunDir, plan: Plan, spec: str, *, several: bool, mapping: str | None = None) -> Truth:
    """The truth that `spec` names: a column of the run's input by the name it has there, or a file.

    several: whether an image may have several labels. mapping: a CSV or JSON file with a label for each name in the
    truth. Raises: InputError naming what is wrong and the remedy.
    """
    coder = _Coder(read_mapping(mapping) if mapping else {}, several)
    column = _column(run, plan, spec)
    if column is not None:
        codes = np.full(plan.rows, NO_TRUTH, np.int32)
        for batch in run_rows(run, plan, ["row_id", column]):
            codes[batch["row_id"].to_numpy()] = coder.codes(batch[column].combine_chunks())
        truth = Truth(source=f"the column {spec!r} of the input", codes=codes)
    else:
        truth = _from_file(run, plan, Path(spec), coder)
    truth.names = list(coder.names)
    truth.lists = list(coder.lists) if several else None
    if not truth.rows:
        raise InputError(f"--truth {spec}: no row of the run {run.path} has a truth in it: check its row_id or uri")
    return truth


def run_rows(run: RunDir, plan: Plan, columns: list[str]) -> Iterator[pa.Table]:
    """These columns of the finished parts, a part at a time. Raises: InputError naming a part that is damaged."""
    done = sorted(run.done(plan))
    if not done:
        raise InputError(f"{run.path} has no finished part yet: clipbatch run --out {run.path} first")
    for shard in done:
        signals.check()
        path = run.part(shard, plan.shards)
        try:
            table = pq.read_table(parquet_source(path), columns=columns)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair does it again") from error
        yield table


def _column(run: RunDir, plan: Plan, spec: str) -> str | None:
    """The column of the parts that `spec` names; None if it names a file."""
    done = sorted(run.done(plan))
    if not done:
        raise InputError(f"{run.path} has no finished part yet: clipbatch run --out {run.path} first")
    schema = pq.read_schema(parquet_source(run.part(done[0], plan.shards)))
    settings = plan.run_settings()
    output, captions = settings.output, settings.source.caption_column is not None
    fields = result_fields(group_columns(plan.labels, output), output, 0, plan.heads, captions=captions)
    results = {field.name for field in fields} | {*_KEYS}
    carried = [name for name in schema.names if name not in results]
    if (name := carried_name(spec, carried)) is not None:
        return name
    if Path(spec).is_file():
        return None
    if spec in results:
        raise InputError(
            f"--truth {spec} is a column that the run itself has made, which would give 100%: name a column of the "
            f"input ({', '.join(carried) or 'it has none'}), or a file"
        )
    known = ", ".join(carried) or "it has none"
    raise InputError(
        f"--truth {spec}: there is no such file, and no such column of the input ({known}).{nearest(spec, carried)}"
    )


def _from_file(run: RunDir, plan: Plan, path: Path, coder: _Coder) -> Truth:
    table = read_table(path)
    key = next((name for name in _KEYS if name in table.column_names), None)
    if key is None:
        raise InputError(f"{path} has no column row_id or uri to know the images by: it has {named(table)}")
    others = [name for name in table.column_names if name not in _KEYS]
    name = "truth" if "truth" in others else others[0] if len(others) == 1 else None
    if name is None:
        raise InputError(f"{path}: name the column with the truth `truth`: it has {named(table)}")
    try:
        given = coder.codes(table[name].combine_chunks())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    keys = table[key].combine_chunks()
    codes = np.full(plan.rows, NO_TRUTH, np.int32)
    truth = Truth(source=f"the file {path}", codes=codes)
    at = _row_ids(keys, path) if key == "row_id" else None
    if at is not None:
        inside = (at >= 0) & (at < plan.rows)
        truth.not_in_run = int((~inside).sum())
        codes[at[inside]] = given[inside]
    else:
        truth.not_in_run = _join_by_uri(run, plan, keys, given, codes, path)
    if all(column in table.column_names for column in QUEUE):
        if at is None:
            raise InputError(f"{path} has weights, and no row_id: keep the columns that clipbatch review wrote")
        truth.weights = _weights(table, at, path)
    return truth


def _row_ids(keys: pa.Array, path: Path) -> NDArray[np.int64]:
    try:
        found = np.asarray(pc.cast(keys, pa.int64()))
    except pa.ArrowException as error:
        raise InputError(f"{path}: row_id has to be whole numbers: {error}") from error
    if keys.null_count:
        raise InputError(f"{path}: {keys.null_count} rows have no row_id: remove them")
    _check_once(pa.array(found), path)
    return np.asarray(found, np.int64)


def _check_once(keys: pa.Array, path: Path) -> None:
    if len(pc.unique(keys)) == len(keys):
        return
    counts = pc.value_counts(keys)
    again = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
    raise InputError(f"{path}: {again!r} appears more than once: keep one row for each image")


def _join_by_uri(
    run: RunDir, plan: Plan, keys: pa.Array, given: NDArray[np.int32], codes: NDArray[np.int32], path: Path
) -> int:
    """Put the truth into `codes`; returns how many keys the run does not have."""
    keys = keys.cast(pa.string())
    _check_once(keys, path)
    seen = np.zeros(len(keys), bool)
    for tables in _chunks(run_rows(run, plan, ["row_id", "uri"]), max(len(keys), _BATCH_ROWS)):
        table = pa.concat_tables(tables)
        found = pc.index_in(table["uri"].combine_chunks().cast(pa.string()), value_set=keys)
        is_known = np.asarray(found.is_valid())
        at = np.asarray(pc.drop_null(found))
        seen[at] = True
        codes[table["row_id"].to_numpy()[is_known]] = given[at]
    return int((~seen).sum())


def _chunks(tables: Iterable[pa.Table], rows: int) -> Iterator[list[pa.Table]]:
    """Tables together of about `rows` rows: to look a chunk up costs as much as there are keys."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.num_rows for each in waiting) >= rows:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _weights(table: pa.Table, row_ids: NDArray[np.int64], path: Path) -> dict[int, tuple[str, float]]:
    strata = table["stratum"].cast(pa.string()).to_pylist()
    try:
        weights = np.asarray(table["weight"].cast(pa.float64()))
    except pa.ArrowException as error:
        raise InputError(f"{path}: weight has to be numbers, as clipbatch review wrote them: {error}") from error
    if not (weights > 0).all():
        raise InputError(f"{path}: every row needs the weight above 0 that clipbatch review wrote")
    return {int(row): (str(s), float(w)) for row, s, w in zip(row_ids, strata, weights, strict=True)}


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
        column = column.cast(pa.int64())  # class numbers, as pandas writes them beside missing ones
    return column.cast(pa.string())


def _parsed_list(text: str) -> list[str]:
    if text.startswith("["):
        try:
            values = json.loads(text)
            if isinstance(values, list):
                return [str(value) for value in values]
        except ValueError:
            pass
    return text.split("|")
