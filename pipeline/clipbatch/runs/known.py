"""Which rows of a listing a dataset of increments knows already, and which images are gone from it.

The latest rows of an image are those in the last increment that has it (`latest`). There are several if the input names
an image more than once, for example for two products. A row of the listing is known if one of them has the same look:
size and time of the file, or its digest (`stamps`), and the columns of the manifest. Only columns that both sides have
are compared. If one of several rows of an image is new or changed, all of them go into the new increment.

A row that was `missing` has no file to compare with. One whose failure may have passed by another night never looks the
same, so it is tried again, but in `MAX_TRIES` increments at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.inputs import listing as listings
from clipbatch.inputs.column_types import widest
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import STAMPS
from clipbatch.runs.latest import OWN, Latest, latest_rows, manifest, manifest_schema
from clipbatch.runs.stamps import Folders, Stamper, look_hashes, name_hashes
from clipbatch.storage.failures import MAY_PASS, may_pass
from clipbatch.storage.paths import parquet_source
from clipbatch.workers import signals

# In so many increments an image is tried whose failure may pass. Without a limit, lists with dead hosts would add rows
# every night.
MAX_TRIES = 7
_BAD = ("missing", *MAY_PASS)
_STAMP_NAMES = [field.name for field in STAMPS]
_LISTED = [name for name in OWN if name not in _STAMP_NAMES]


@dataclass(slots=True, kw_only=True)
class Comparison:
    """How many rows of the listing are new, changed or known. again: how many of the changed ones are tried again
    because their failure may have passed."""

    new: int = 0
    changed: int = 0
    known: int = 0
    again: int = 0


class Known:
    """The latest rows of the increments. In memory they take about 30 bytes each."""

    def __init__(self, done: list[Path]) -> None:
        """done: the increments, all complete, oldest first. Raises: InputError naming one that is damaged."""
        self._done = done
        self.comparison = Comparison()
        self._folders = Folders()
        schemas = [manifest_schema(path) for path in done]
        # The columns that the increments carry and their stamps, each of the type that it has in all of them. Where
        # older versions let types differ, a stamp has that of the first, and a carried column the widest.
        fields: dict[str, pa.Field] = {}
        for field in (field for schema in schemas for field in schema if field.name not in _LISTED):
            before = fields.setdefault(field.name, field.remove_metadata())
            if field.name not in _STAMP_NAMES:
                fields[field.name] = before.with_type(widest(before.type, field.type))
        self.columns = pa.schema(list(fields.values()))
        self._carried = [_carried(schema) for schema in schemas]

    @property
    def carried(self) -> pa.Schema:
        """`columns` without the stamps."""
        return pa.schema([field for field in self.columns if field.name not in _STAMP_NAMES])

    def select(self, listing: listings.Listing, stamper: Stamper) -> Iterator[pa.RecordBatch]:
        """The rows of the listing that are new or changed, with what their files look like now."""
        self._read(listing.absent)
        for batch in listing.batches():
            stamped = stamper.stamped(batch)
            at, known = self._compare(stamped)
            seen = at >= 0
            self._emitted[at[seen & ~known]] = True
            self.comparison.new += int((~seen).sum())
            self.comparison.changed += int((seen & ~known).sum())
            self.comparison.again += int(self._again[at[seen & ~known]].sum())
            self.comparison.known += int(known.sum())
            yield stamped.filter(pa.array(~known))
        yield from self._siblings(listing, stamper)

    def latest(self) -> Latest:
        """The latest rows of the increments. Call it after `select`."""
        return Latest(self._done, self._sizes, self._names, self._numbers)

    def gone(self) -> NDArray[np.int64]:
        """The numbers, as in `latest`, of rows that the listing does not have any more. Call it after `select`."""
        return self._numbers[~self._present()]

    def back(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `numbers`, rows that had been marked as deleted, that the listing has. Call it after `select`."""
        if not len(numbers):
            return numbers
        present = np.zeros(sum(self._sizes), bool)
        present[self._numbers[self._present()]] = True
        return numbers[present[numbers]]

    def _present(self) -> NDArray[np.bool_]:
        """Which of the rows the listing has."""
        firsts = self._firsts()
        present = self._matched | self._emitted[firsts]
        # Of rows that are the same twice, only the first one is matched. Few images have several rows, so only these
        # are compared: a look at all of 40 million rows takes minutes.
        images = np.zeros_like(present)
        images[firsts[self._matched]] = True
        others = np.flatnonzero(~present & images[firsts])
        images[:] = False
        images[firsts[others]] = True
        matched = np.flatnonzero(self._matched & images[firsts])
        present[others] = np.isin(self._mixed(others), self._mixed(matched))
        return present

    def _mixed(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """A hash of name and look of each of `rows`."""
        return np.asarray(self._names[rows] ^ (self._looks[rows] * np.int64(-7046029254386353131)))

    def _read(self, absent: Collection[str]) -> None:
        """Read the manifests. absent: columns that the input does not have tonight."""
        names, looks, again, tried = ([np.empty(0, kind)] for kind in (np.int64, np.int64, bool, np.int64))
        self._sets = [tuple(name for name in columns if name not in absent) for columns in self._carried]
        self._sizes = []
        for path, columns in zip(self._done, self._sets, strict=True):
            run = RunDir(path)
            plan = run.plan()
            missing, passing = _failures(run, plan)
            self._sizes.append(plan.rows)
            failed = [np.empty(0, np.int64)]
            for batch in manifest(run, plan, [*OWN, *columns]):
                signals.check()
                row_ids = batch["row_id"].to_numpy()
                names.append(name_hashes(batch, self._folders))
                looks.append(look_hashes(self._alike(batch), columns, missing[row_ids]))
                again.append(passing[row_ids])
                failed.append(names[-1][again[-1]])
            tried.append(np.unique(np.concatenate(failed)))  # an image may have several rows in an increment
        self._sets = list(dict.fromkeys(self._sets))
        every_name, every_again = np.concatenate(names), np.concatenate(again)
        del names
        self._names, self._numbers = latest_rows(every_name, self._sizes)
        ever, count = np.unique(np.concatenate(tried), return_counts=True)
        self._looks = np.concatenate(looks)[self._numbers]
        # Rows that are tried again.
        self._again = every_again[self._numbers]
        self._again[self._again] = np.isin(self._names[self._again], ever[count < MAX_TRIES])
        # Rows that the listing has, and the first rows of images of which the listing has another row.
        self._matched, self._emitted = (np.zeros(len(self._names), bool) for _ in range(2))

    def _compare(self, stamped: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each row of a listing, where the rows of its image begin (-1: nowhere), and whether it is known. Notes
        which rows are matched."""
        at = self._at(name_hashes(stamped, self._folders))
        known = np.zeros(len(at), bool)
        open_rows = np.flatnonzero(at >= 0)
        for columns in self._sets:
            if not len(open_rows):
                break
            looks = look_hashes(stamped, columns, np.zeros(len(at), bool))
            rows, places = open_rows, at[open_rows]
            while len(rows):  # once for most rows: few images have several
                same = (self._looks[places] == looks[rows]) & ~self._again[places]
                self._matched[places[same]] = known[rows[same]] = True
                following = np.minimum(places + 1, len(self._names) - 1)
                more = ~same & (following > places) & (self._names[following] == self._names[places])
                rows, places = rows[more], places[more] + 1
            open_rows = open_rows[~known[open_rows]]
        return at, known

    def _firsts(self) -> NDArray[np.int64]:
        """For each row, where the rows of its image begin."""
        return np.searchsorted(self._names, self._names)

    def _at(self, names: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._names):
            return np.full(len(names), -1)
        at = np.minimum(np.searchsorted(self._names, names), len(self._names) - 1)
        return np.where(self._names[at] == names, at, -1)

    def _siblings(self, listing: listings.Listing, stamper: Stamper) -> Iterator[pa.RecordBatch]:
        """The known rows of images of which another row is new or changed. Lists the input again if there are any."""
        matched = np.zeros_like(self._matched)
        matched[self._firsts()[self._matched]] = True
        mixed = self._emitted & matched
        if not mixed.any():
            return
        for batch in listing.again():
            at = self._at(name_hashes(batch, self._folders))
            stamped = stamper.stamped(batch.filter(pa.array((at >= 0) & mixed[at])))
            _, known = self._compare(stamped)
            self.comparison.known -= int(known.sum())
            self.comparison.changed += int(known.sum())
            yield stamped.filter(pa.array(known))

    def _alike(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with the types of `columns`, where they can hold its values."""
        columns = []
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            at = self.columns.get_field_index(name)
            if at >= 0 and self.columns.field(at).type != values.type:
                with contextlib.suppress(pa.ArrowException):
                    values = values.cast(self.columns.field(at).type)
            columns.append(values)
        return pa.record_batch(columns, names=batch.schema.names)


def _carried(schema: pa.Schema) -> tuple[str, ...]:
    return tuple(name for name in schema.names if name not in OWN)


def _failures(run: RunDir, plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each row of a complete increment whether its file did not exist when it was to be read, and whether its
    failure may have passed by now. Raises: InputError naming a damaged part."""
    missing, passing = np.zeros(plan.rows, bool), np.zeros(plan.rows, bool)
    for shard, counts in count_statuses(run, plan, range(plan.shards)).items():
        if not any(counts.get(status) for status in _BAD):
            continue
        path = run.part(shard, plan.shards)
        try:
            table = pq.read_table(
                parquet_source(path), columns=["row_id", "status", "error"], filters=[("status", "in", _BAD)]
            )
            for row in table.to_pylist():
                if row["status"] == "missing":
                    missing[row["row_id"]] = True
                elif may_pass(row["status"], row["error"] or ""):
                    passing[row["row_id"]] = True
        except (OSError, pa.ArrowException, IndexError) as error:
            raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair makes it again") from error
    return missing, passing
