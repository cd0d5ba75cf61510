"""The numbers of a report, from the parts of a run: read once, batch by batch, never whole. Opens no image.

Memory depends on the number of labels and on what is kept for show, not on the number of rows. A run that is not
finished, or still at work, is reported as far as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.storage.paths import AnyPath, StorePath, parquet_source
from clipbatch.tools.htmlreport import rankings
from clipbatch.tools.htmlreport.rankings import Example, Ranking, RunnersUp, ScoreColumns
from clipbatch.tools.htmlreport.series import Histogram
from clipbatch.workers import signals

MAX_BAD = 1000
"""Bad images kept for each status."""
_MAX_MESSAGES = 1000
"""Different errors counted for each status; later ones count as others."""
_BATCH_SCORES = 2**22
_BATCH_ROWS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class BadImage:
    """A row without scores."""

    row_id: int
    uri: str
    status: str
    error: str


@dataclass(slots=True, kw_only=True)
class Message:
    """An error that images have in common."""

    count: int
    uri: str
    """Of the first such image."""


@dataclass(slots=True, kw_only=True)
class LabelFacts:
    """What became of one label."""

    name: str
    images: int = 0
    mean_score: float | None = None
    """Of the images whose best label it is; None if there are none."""
    confident: list[Example] = field(default_factory=list)
    """The highest scores, highest first."""
    doubtful: list[Example] = field(default_factory=list)
    """The smallest margins, or the lowest scores where there are no margins; smallest first."""


class SetFacts:
    """What became of one set of labels."""

    def __init__(self, name: str, labels: tuple[str, ...], examples: int) -> None:
        self.name = name
        self.scores, self.margins = Histogram(), Histogram()
        self._number: dict[str, int] = {label: number for number, label in enumerate(labels)}
        self._images: NDArray[np.int64] = np.zeros(0, np.int64)
        self._firsts: NDArray[np.int64] = np.zeros(0, np.int64)
        """Images by their best label; `_images` counts all labels of an image."""
        self._sums: NDArray[np.float64] = np.zeros(0)
        self._confident, self._doubtful = Ranking(examples), Ranking(examples)
        self.unlabelled = 0
        """Images whose scores are all below their labels' thresholds."""

    def add(self, found: ScoreColumns, batch: pa.RecordBatch) -> None:
        """batch: rows that all have scores."""
        self.scores.add(np.asarray(batch.column(found.score)))
        second = rankings.runners_up(found, batch)
        if second:
            self.margins.add(second.margin_B)
        labelled_B = np.asarray(batch.column(found.label).is_valid())
        self.unlabelled += int((~labelled_B).sum())
        self._add_labelled(found, batch, second, np.flatnonzero(labelled_B))

    def _add_labelled(
        self, found: ScoreColumns, batch: pa.RecordBatch, second: RunnersUp | None, slots: NDArray[np.int64]
    ) -> None:
        """slots: the rows of `batch` that have a label."""
        label, score_B = batch.column(found.label), np.asarray(batch.column(found.score))[slots]
        names = label.dictionary.to_pylist()
        numbers = np.array([self._number.setdefault(name, len(self._number)) for name in names], np.int64)
        label_B = numbers[np.asarray(label.indices.fill_null(0))[slots]]
        margin_B = second.margin_B[slots] if second else None
        known = len(self._number)
        if found.lists is None:
            self._images = _added(self._images, np.bincount(label_B, minlength=known))
        else:
            self._count_lists(batch.column(found.lists))
        self._firsts = _added(self._firsts, np.bincount(label_B, minlength=known))
        self._sums = _added(self._sums, np.bincount(label_B, np.nan_to_num(score_B), minlength=known))

        def make(number: int) -> Example:
            slot = int(slots[number])
            return Example(
                row_id=batch.column("row_id")[slot].as_py(),
                uri=batch.column("uri")[slot].as_py(),
                score=float(score_B[number]),
                margin=float(second.margin_B[slot]) if second else None,
                runner_up=second.names[second.index_B[slot]] if second else None,
            )

        self._confident.offer(label_B, score_B, make)
        self._doubtful.offer(label_B, -(score_B if margin_B is None else margin_B), make)

    def _count_lists(self, lists: pa.ListArray) -> None:
        for entry in pc.value_counts(lists.flatten()).to_pylist():
            number = self._number.setdefault(entry["values"], len(self._number))
            self._images = _added(self._images, np.bincount([number], [entry["counts"]]).astype(np.int64))

    @property
    def labels(self) -> list[LabelFacts]:
        """All labels, the most frequent first. No row stands among both a label's confident and doubtful ones."""
        made = []
        for name, number in self._number.items():
            images = int(self._images[number]) if number < len(self._images) else 0
            confident = self._confident.of(number)[: -(-images // 2)]
            shown = {example.row_id for example in confident}
            doubtful = [example for example in self._doubtful.of(number) if example.row_id not in shown]
            firsts = int(self._firsts[number]) if number < len(self._firsts) else 0
            mean = float(self._sums[number]) / firsts if firsts else None
            made.append(LabelFacts(name=name, images=images, mean_score=mean, confident=confident, doubtful=doubtful))
        return sorted(made, key=lambda facts: -facts.images)


@dataclass(slots=True, kw_only=True)
class Gathered:
    """Everything that the parts say."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    messages: dict[str, dict[str, Message]] = field(default_factory=dict)
    """By status and error."""
    other_messages: Counter[str] = field(default_factory=Counter)
    """Images with further errors, by status."""
    bad: dict[str, list[BadImage]] = field(default_factory=dict)
    """By status, the first ones in the order of rows."""
    sets: dict[str, SetFacts] = field(default_factory=dict)
    published: list[tuple[float, int]] = field(default_factory=list)
    """For each part, when (unix time, seconds) and how many rows."""
    score_kind: str = ""
    """softmax, sigmoid or cosine."""


def gather(run: RunDir, plan: Plan, *, examples: int) -> Gathered:
    """Read all parts that are there. examples: rows to keep for each label, as often confident as doubtful.

    Raises: InputError where there is no part yet, or one is damaged, naming it and the remedy.
    """
    found, times, groups = Gathered(), _times(run.parts), rankings.find(plan)
    found.sets = {entry.name: SetFacts(entry.name, entry.labels, examples) for entry in groups}
    for shard in sorted(run.done(plan)):
        path = run.part(shard, plan.shards)
        try:
            rows = _add_part(found, path, groups)
            found.published.append((times.get(path.name, 0.0), rows))
        except FileNotFoundError:  # an operator is at work on it
            continue
        except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair does it again") from error
    if not found.published:
        raise InputError(
            f"{run.path} has no finished part yet, so there is nothing to report: clipbatch status says how far it is"
        )
    return found


def _times(folder: AnyPath) -> dict[str, float]:
    """When each file of `folder` was written last, unix time in seconds."""
    if isinstance(folder, StorePath):
        return {entry.base_name: (entry.mtime_ns or 0) / 1e9 for entry in folder.entries()}
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found[entry.name] = entry.stat().st_mtime
    return found


def _add_part(found: Gathered, path: AnyPath, groups: list[ScoreColumns]) -> int:
    """How many rows it has."""
    with pq.ParquetFile(parquet_source(path)) as file:
        found.score_kind = (file.metadata.metadata or {}).get(b"clipbatch.score", b"").decode()
        for batch in _batches(file, groups):
            signals.check()
            ok = pc.equal(batch.column("status").cast(pa.string()), "ok")
            _add_statuses(found, batch, ok)
            good = batch.filter(ok)
            if good.num_rows:
                for entry in groups:
                    found.sets[entry.name].add(entry, good)
        return int(file.metadata.num_rows)


def _batches(file: pq.ParquetFile, groups: list[ScoreColumns]) -> Iterator[pa.RecordBatch]:
    wanted = ["row_id", "uri", "status", "error", *(name for entry in groups for name in entry.all)]
    rows = max(1024, min(_BATCH_ROWS, _BATCH_SCORES // sum(len(entry.labels) for entry in groups)))
    yield from file.iter_batches(batch_size=rows, columns=wanted)


def _add_statuses(found: Gathered, batch: pa.RecordBatch, ok: pa.BooleanArray) -> None:
    found.rows += batch.num_rows
    found.statuses.update({"ok": ok.true_count} if ok.true_count else {})
    if ok.true_count == batch.num_rows:
        return
    table = pa.table(
        {name: batch.column(name).cast(kind) for name, kind in _BAD.items()} | {"one": np.ones(batch.num_rows, int)}
    ).filter(pc.invert(ok))
    table = table.set_column(3, "error", pc.fill_null(table["error"], ""))
    kinds = pa.TableGroupBy(table, ["status", "error"], use_threads=False)
    for kind in kinds.aggregate([("one", "sum"), ("uri", "first")]).to_pylist():
        _add_message(found, kind)
    for status in found.statuses:
        if status != "ok" and len(kept := found.bad.setdefault(status, [])) < MAX_BAD:
            rows = table.filter(pc.equal(table["status"], status)).slice(0, MAX_BAD - len(kept))
            kept += [BadImage(**row) for row in rows.drop_columns(["one"]).to_pylist()]


_BAD: dict[str, Any] = {"row_id": pa.int64(), "uri": pa.string(), "status": pa.string(), "error": pa.string()}


def _add_message(found: Gathered, kind: dict[str, Any]) -> None:
    status, count = kind["status"], kind["one_sum"]
    found.statuses[status] += count
    messages = found.messages.setdefault(status, {})
    if kind["error"] in messages:
        messages[kind["error"]].count += count
    elif len(messages) < _MAX_MESSAGES:
        messages[kind["error"]] = Message(count=count, uri=kind["uri_first"])
    else:
        found.other_messages[status] += count


def _added(total: Any, more: NDArray[Any]) -> NDArray[Any]:
    grown = np.zeros(max(len(total), len(more)), total.dtype)
    grown[: len(total)] = total
    grown[: len(more)] += more
    return grown
