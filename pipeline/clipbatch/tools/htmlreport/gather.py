"""Gathers the numbers of a report from the parts of a run. Reads each part once, batch by batch. Opens no image.

Memory depends on the number of labels and of examples, not on the number of rows. A run that is not finished, or still
running, is reported as far as it is done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.captions import column_of
from clipbatch.rundir.counts import listing
from clipbatch.storage.paths import AnyPath, parquet_source
from clipbatch.tools.htmlreport import rankings
from clipbatch.tools.htmlreport.captions import CaptionFacts
from clipbatch.tools.htmlreport.heads import HeadFacts
from clipbatch.tools.htmlreport.rankings import Example, Ranking, RunnersUp, ScoreColumns
from clipbatch.tools.htmlreport.series import Histogram
from clipbatch.tools.htmlreport.sources import Source
from clipbatch.workers import signals

# How many bad images are kept for each status.
MAX_BAD = 1000
# How many different errors are counted for each status. Further errors count together.
_MAX_MESSAGES = 1000
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
    """An error that some images have."""

    count: int
    # The first such image.
    uri: str


@dataclass(slots=True, kw_only=True)
class LabelFacts:
    """The numbers and examples of a label."""

    name: str
    images: int = 0
    # Of the images whose best label it is; None if there are none.
    mean_score: float | None = None
    # The images with the highest scores, highest first.
    confident: list[Example] = field(default_factory=list)
    # The images with the smallest margins, or with the lowest scores if there are no margins; smallest first.
    doubtful: list[Example] = field(default_factory=list)


class SetFacts:
    """The numbers and examples of a set of labels."""

    def __init__(self, name: str, labels: tuple[str, ...], examples: int) -> None:
        self.name = name
        self.scores, self.margins = Histogram(), Histogram()
        self._number: dict[str, int] = {label: number for number, label in enumerate(labels)}
        self._images: NDArray[np.int64] = np.zeros(0, np.int64)
        # Images by their best label; `_images` counts all labels of an image.
        self._firsts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._sums: NDArray[np.float64] = np.zeros(0)
        self._confident, self._doubtful = Ranking(examples), Ranking(examples)
        # How many images have no score that reaches the threshold of its label.
        self.unlabelled = 0

    def add(self, columns: ScoreColumns, batch: pa.RecordBatch) -> None:
        """Count the rows of `batch`, which all have scores."""
        self.scores.add(np.asarray(batch.column(columns.score)))
        second = rankings.runners_up(columns, batch)
        if second:
            self.margins.add(second.margin_B)
        labelled_B = np.asarray(batch.column(columns.label).is_valid())
        self.unlabelled += int((~labelled_B).sum())
        self._add_labelled(columns, batch, second, np.flatnonzero(labelled_B))

    def _add_labelled(
        self, columns: ScoreColumns, batch: pa.RecordBatch, second: RunnersUp | None, slots: NDArray[np.int64]
    ) -> None:
        """slots: the rows of `batch` that have a label."""
        label, score_B = batch.column(columns.label), np.asarray(batch.column(columns.score))[slots]
        names = label.dictionary.to_pylist()
        numbers = np.array([self._number.setdefault(name, len(self._number)) for name in names], np.int64)
        label_B = numbers[np.asarray(label.indices.fill_null(0))[slots]]
        margin_B = second.margin_B[slots] if second else None
        known = len(self._number)
        if columns.lists is None:
            self._images = _sum(self._images, np.bincount(label_B, minlength=known))
        else:
            self._count_lists(batch.column(columns.lists))
        self._firsts = _sum(self._firsts, np.bincount(label_B, minlength=known))
        self._sums = _sum(self._sums, np.bincount(label_B, np.nan_to_num(score_B), minlength=known))

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
            self._images = _sum(self._images, np.bincount([number], [entry["counts"]]).astype(np.int64))

    @property
    def labels(self) -> list[LabelFacts]:
        """All labels, the most frequent first. No image is both a confident and a doubtful example of a label."""
        result = []
        for name, number in self._number.items():
            images = int(self._images[number]) if number < len(self._images) else 0
            confident = self._confident.of(number)[: -(-images // 2)]
            shown = {example.row_id for example in confident}
            doubtful = [example for example in self._doubtful.of(number) if example.row_id not in shown]
            firsts = int(self._firsts[number]) if number < len(self._firsts) else 0
            mean = float(self._sums[number]) / firsts if firsts else None
            result.append(LabelFacts(name=name, images=images, mean_score=mean, confident=confident, doubtful=doubtful))
        return sorted(result, key=lambda facts: -facts.images)


@dataclass(slots=True, kw_only=True)
class Gathered:
    """All numbers from the parts of a run."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    # By status and error.
    messages: dict[str, dict[str, Message]] = field(default_factory=dict)
    # By status: how many images have further errors.
    other_messages: Counter[str] = field(default_factory=Counter)
    # By status: the first bad images, in the order of rows.
    bad: dict[str, list[BadImage]] = field(default_factory=dict)
    sets: dict[str, SetFacts] = field(default_factory=dict)
    # For each part the time of its publication (unix time, seconds) and its number of rows.
    published: list[tuple[float, int]] = field(default_factory=list)
    # softmax, sigmoid or cosine.
    score_kind: str = ""
    # None unless the run has captions.
    captions: CaptionFacts | None = None
    # Those of the last source. An increment with other heads counts only in those that are the same.
    heads: list[HeadFacts] = field(default_factory=list)


def gather(sources: Sequence[Source], *, examples: int) -> Gathered:
    """Read all existing parts of runs with the same labels. examples: how many confident and how many doubtful images
    to keep for each label.

    Raises: InputError if there is no part yet, or a part is damaged; the message names it and the remedy.
    """
    gathered, groups = Gathered(), rankings.find(sources[-1].plan)
    gathered.sets = {entry.name: SetFacts(entry.name, entry.labels, examples) for entry in groups}
    if column := column_of(sources[-1].run, sources[-1].plan):
        gathered.captions = CaptionFacts(column, examples)
    gathered.heads = [HeadFacts(head) for head in sources[-1].plan.heads]
    for source in sources:
        _add_run(gathered, source, groups)
    if not gathered.published:
        raise InputError(
            f"{sources[-1].run.path} has no finished part yet, so there is nothing to report: clipbatch status shows "
            "how far it is"
        )
    return gathered


def _add_run(gathered: Gathered, source: Source, groups: list[ScoreColumns]) -> None:
    run, plan, listed = source.run, source.plan, listing(source.run)
    for shard in sorted(run.done(plan)):
        path = run.part(shard, plan.shards)
        try:
            rows = _add_part(gathered, path, groups, source)
            gathered.published.append((listed.get(path.name, [0, 0])[1] / 1e9, rows))
        except FileNotFoundError:  # somebody has just deleted it
            continue
        except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair makes it again") from error


def _add_part(gathered: Gathered, path: AnyPath, groups: list[ScoreColumns], source: Source) -> int:
    """Add the numbers of a part. Returns how many rows it has."""
    heads = [facts for facts in gathered.heads if facts.head in source.plan.heads]
    with pq.ParquetFile(parquet_source(path)) as file:
        gathered.score_kind = (file.metadata.metadata or {}).get(b"clipbatch.score", b"").decode()
        for batch in map(source.counted, _batches(file, groups, gathered.captions, heads)):
            signals.check()
            ok = pc.equal(batch.column("status").cast(pa.string()), "ok")
            _add_statuses(gathered, batch, ok)
            good = batch.filter(ok)
            if good.num_rows:
                for entry in groups:
                    gathered.sets[entry.name].add(entry, good)
                if gathered.captions:
                    gathered.captions.add(good)
                for facts in heads:
                    facts.add(good)
        return int(file.metadata.num_rows)


def _batches(
    file: pq.ParquetFile, groups: list[ScoreColumns], captions: CaptionFacts | None, heads: list[HeadFacts]
) -> Iterator[pa.RecordBatch]:
    wanted = ["row_id", "uri", "status", "error", *(name for entry in groups for name in entry.all)]
    wanted += captions.columns if captions else []
    wanted += [name for facts in heads for name in facts.columns]
    scores = sum(len(entry.labels) for entry in groups) + sum(len(facts.columns) for facts in heads)
    rows = max(1024, min(_BATCH_ROWS, _BATCH_SCORES // max(1, scores)))
    yield from file.iter_batches(batch_size=rows, columns=wanted)


def _add_statuses(gathered: Gathered, batch: pa.RecordBatch, ok: pa.BooleanArray) -> None:
    gathered.rows += batch.num_rows
    gathered.statuses.update({"ok": ok.true_count} if ok.true_count else {})
    if ok.true_count == batch.num_rows:
        return
    table = pa.table(
        {name: batch.column(name).cast(kind) for name, kind in _BAD.items()} | {"one": np.ones(batch.num_rows, int)}
    ).filter(pc.invert(ok))
    table = table.set_column(3, "error", pc.fill_null(table["error"], ""))
    kinds = pa.TableGroupBy(table, ["status", "error"], use_threads=False)
    for kind in kinds.aggregate([("one", "sum"), ("uri", "first")]).to_pylist():
        _add_message(gathered, kind)
    for status in gathered.statuses:
        if status != "ok" and len(bad := gathered.bad.setdefault(status, [])) < MAX_BAD:
            rows = table.filter(pc.equal(table["status"], status)).slice(0, MAX_BAD - len(bad))
            bad += [BadImage(**row) for row in rows.drop_columns(["one"]).to_pylist()]


_BAD: dict[str, pa.DataType] = {"row_id": pa.int64(), "uri": pa.string(), "status": pa.string(), "error": pa.string()}


def _add_message(gathered: Gathered, kind: JsonObject) -> None:
    status, count = kind["status"], kind["one_sum"]
    gathered.statuses[status] += count
    messages = gathered.messages.setdefault(status, {})
    if kind["error"] in messages:
        messages[kind["error"]].count += count
    elif len(messages) < _MAX_MESSAGES:
        messages[kind["error"]] = Message(count=count, uri=kind["uri_first"])
    else:
        gathered.other_messages[status] += count


def _sum(total: Any, more: NDArray[Any]) -> NDArray[Any]:
    grown = np.zeros(max(len(total), len(more)), total.dtype)
    grown[: len(total)] = total
    grown[: len(more)] += more
    return grown
