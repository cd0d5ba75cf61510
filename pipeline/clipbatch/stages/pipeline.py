"""What a worker does: join the stages over the shards that it is given. Reads like the table in
docs/explanation/how-an-image-flows.md.

Knows nothing of other workers, of signals or of progress bars: it is handed shards and hands back what became of
each batch. The pipeline does not drain between shards.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipbatch.config import Settings
from clipbatch.config.labels import LabelSet
from clipbatch.errors import InputError
from clipbatch.rundir import features
from clipbatch.rundir.damage import protect
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import LISTING
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, Model, check_device, device_facts, load, text_features
from clipbatch.stages.flow import Flow, Stage, bottleneck
from clipbatch.stages.journal import Journal
from clipbatch.stages.profiling import ranged
from clipbatch.stages.read import Backpressure, Read
from clipbatch.stages.saved_embeddings import SavedEmbeddings
from clipbatch.stages.score import Score
from clipbatch.stages.write import Write, Written
from clipbatch.types import (
    EmbeddedBatch,
    Item,
    ItemBatch,
    PartDone,
    PixelBatch,
    ReadBatch,
    Reject,
    ScoredBatch,
    WorkerReport,
)

_TELL_EVERY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A shard to do: all of it, or only the rows named (row_ids), which replaces these rows in its part."""

    shard: int
    rows: frozenset[int] | None = None
    rejects: Mapping[int, Reject] = field(default_factory=dict)
    """Rows (row_ids) that have ended a worker before, and are not to be touched."""
    force: bool = False
    """Its part may replace one that has more ok rows."""


class Decoding(Protocol):
    """The decode stage: `Decode`, or one that works in another process."""

    threads: int
    """That may call it at a time."""

    def __call__(self, batch: ReadBatch) -> PixelBatch:
        """Decode all slots; what cannot be decoded keeps a blank one."""

    def close(self) -> None:
        """End its threads; to be called when nothing is being decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A loaded model and the stages that know no run: what a process can keep from one run to the next."""

    model: Model
    read: Read
    decode: Decoding
    encode: Encode

    @staticmethod
    def load(settings: Settings, batch_size: int, device: str) -> LoadedModel:
        """settings: resolved.

        Raises: InputError if the model cannot be loaded.
        """
        return LoadedModel.around(load(settings.model), settings, batch_size, device)

    @staticmethod
    def around(model: Model, settings: Settings, batch_size: int, device: str) -> LoadedModel:
        """The stages that `settings` ask for, around a model that is loaded already."""
        target = Target.from_facts(model.facts())
        decode = Decode(settings.decode, target, batch_size=batch_size, device=device)
        encode = Encode(
            model,
            precision=settings.model.precision,
            device=device,
            batch_size=batch_size,
            compiles=settings.model.compile == "on" and device != "cpu",
        )
        read = Read(settings.read, batches=4 * decode.threads)
        return LoadedModel(model=model, read=read, decode=decode, encode=encode)

    def stages(
        self,
        gate: Backpressure,
        journal: Journal | None = None,
        encode: Callable[[PixelBatch], EmbeddedBatch] | None = None,
    ) -> list[Stage]:
        """From names to embeddings, for batches that `gate` has admitted.

        journal: notes each batch before it is decoded. encode: does it in place of the model's own stage.
        """

        def read(batch: ItemBatch) -> ReadBatch:
            encoded = self.read(batch)
            gate.measured(encoded)
            return encoded

        def decode(batch: ReadBatch) -> PixelBatch:
            if journal:
                journal.enter(batch.source.start, len(batch.slots))
            pixels = self.decode(batch)
            gate.release(batch)
            return pixels

        return [
            Stage(name="read", work=read, threads=self.read.batches),
            Stage(name="decode", work=decode, threads=self.decode.threads),
            Stage(name="encode", work=encode or self.encode, threads=self.encode.threads),
        ]


def scorer(
    text_LD: NDArray[np.float32],
    facts: Mapping[str, Any],
    kind: str,
    *,
    labels: LabelSet,
    embeddings: bool,
    device: str,
) -> Score:
    """The score stage for label features `text_LD`. facts: the model's. kind: as `scoring` says."""
    return Score(
        text_LD,
        device=device,
        kind=kind,
        logit_scale=facts["logit_scale"],
        logit_bias=facts["logit_bias"],
        groups=labels.sizes,
        embeddings=embeddings,
    )


def scoring(settings: Settings, facts: Mapping[str, Any]) -> str:
    """How scores are made: `settings.output.score`, with auto replaced by how the model with `facts` was trained."""
    if settings.output.score != "auto":
        return settings.output.score
    return "softmax" if facts["logit_bias"] is None else "sigmoid"


class ShardPipeline:
    """All stages of a run on one device, from the names of a shard to its part."""

    def __init__(
        self,
        run: RunDir,
        fingerprint: str,
        device: str,
        runtime: Mapping[str, Any],
        journal: Journal,
        model: LoadedModel | None = None,
    ) -> None:
        """fingerprint: of the plan to go by. runtime: settings that this invocation chose anew (`Settings.runtime`).
        model: loaded before with the settings of the plan; None to load it.

        Raises: InputError where the model cannot be had, or is not the one that the run was begun with."""
        self._plan, self._device = (plan := run.plan_of(fingerprint)), device
        self._settings = settings = plan.run_settings().replace(**runtime)
        check_device(device)
        saved = None if plan.rescored is None else RunDir(plan.rescored)
        if saved is None and model is None:
            model = LoadedModel.load(settings, plan.batch_size, device)
        facts = model.model.facts() if model else (saved and saved.model_facts()) or {}
        kind = scoring(settings, facts)
        run.plan_of(fingerprint)  # again, as loading takes long, and what is frozen now is for whoever comes after

        def encode_labels() -> NDArray[np.float32]:
            return text_features(model.model if model else _load_the_same(settings, facts), plan.labels.prompts)

        text_LD, text_sha256 = features.freeze(run, plan, encode_labels)
        sealed = run.freeze_model({**facts, "score": kind, "text_sha256": text_sha256})
        protect(run, plan)
        score = scorer(text_LD, facts, kind, labels=plan.labels, embeddings=settings.output.embeddings, device=device)
        write = Write(run, plan, fingerprint=sealed, score=kind, embedding=text_LD.shape[1])
        check = functools.partial(run.plan_of, fingerprint)
        self._manifest = Manifest(run, plan)
        self._encoded: Callable[[], dict[str, float]] = dict
        self._admit: Callable[[Iterator[ItemBatch]], Iterator[ItemBatch]] = iter
        self.read: Read | SavedEmbeddings
        if model:
            gate = Backpressure()
            model.read.forget()
            self.read, self._admit, self._encoded = model.read, gate.admit, model.encode.facts
            first = model.stages(gate, journal)
        else:
            assert saved
            self.read = SavedEmbeddings(saved, plan.identity["rescored"])
            first = [Stage(name="recall", work=self.read)]
        last = _leaving(journal if model else None, write, check)
        self.stages = [*first, Stage(name="score", work=score), Stage(name="write", work=last)]
        self._flow: Flow | None = None

    def report(self) -> WorkerReport:
        """What has been done so far."""
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        times = self._flow.times() if self._flow else {}
        facts = device_facts(self._device) | self._encoded()
        return WorkerReport(times=times, peak_mib=peak_mib, facts=facts)

    def label(self, tasks: Iterable[Task]) -> Flow:
        """Do `tasks`; iterate over the flow to get a `Written` for each batch, in order."""
        cut = row_batches if self._plan.rescored else item_batches
        batches = (batch for task in tasks for batch in cut(self._plan, self._manifest, task))
        self._flow = Flow(self._admit(batches), [ranged(stage, self._device) for stage in self.stages])
        return self._flow


def execute(
    pipeline: ShardPipeline,
    tasks: Iterable[Task],
    *,
    on_part: Callable[[PartDone], object],
    on_batches: Callable[[int, int, str], object] = lambda *_: None,
) -> Iterator[Written]:
    """Do `tasks`, and yield what became of each batch, in order: the loop of every worker.

    on_part: takes each part once it is published. on_batches: takes the rows and bad rows since its last call, and the
    name of the slowest stage; called every 0.2 seconds, and before `on_part`.
    """
    flow, rows, bad = pipeline.label(tasks), 0, 0
    told = time.perf_counter()
    with contextlib.closing(iter(flow)) as results:  # type: ignore[type-var]
        for written in results:
            rows, bad = rows + written.rows, bad + written.bad
            now = time.perf_counter()
            if written.part or now - told > _TELL_EVERY_S:
                on_batches(rows, bad, bottleneck(flow.times()))
                rows, bad, told = 0, 0, now
            if written.part:
                on_part(written.part)
            yield written


def _load_the_same(settings: Settings, facts: Mapping[str, Any]) -> Model:
    """The model whose embeddings were saved. Raises: InputError where its weights are others by now."""
    model = load(settings.model)
    if model.weights_sha256 != facts["weights_sha256"]:
        raise InputError(
            f"the weights {settings.model.pretrained or model.name} are not those that the embeddings were made with "
            f"(sha256 {model.weights_sha256[:12]}... now, {facts['weights_sha256'][:12]}... then): put these back"
        )
    return model


def _leaving(journal: Journal | None, write: Write, check: Callable[[], object]) -> Callable[[ScoredBatch], Written]:
    """journal: None where no image is decoded. check: raises where the run has been thrown away meanwhile, so that no
    part of it gets among another's."""

    def noted(batch: ScoredBatch) -> Written:
        if batch.source.last:
            check()
        try:
            written = write(batch)
        except InputError:
            check()  # its folder may be gone because the run is
            raise
        if journal:
            journal.leave(batch.source.start)
        return written

    return noted


def item_batches(plan: Plan, manifest: Manifest, task: Task) -> Iterator[ItemBatch]:
    """The batches of a task. A row keeps its slot also when only some rows are wanted, so its scores stay the same."""
    rows = manifest.rows(task.shard)
    carried = rows.drop_columns(LISTING)
    size, first = plan.batch_size, plan.shard_rows(task.shard).start
    if task.rows is None:
        starts = list(range(0, rows.num_rows, size))
    else:
        starts = sorted({(row_id - first) // size * size for row_id in task.rows})
    for at in starts:  # items only as they are wanted: a shard's would take seconds, and what follows would run dry
        items = manifest.items(rows.slice(at, size))
        yield ItemBatch(
            shard=task.shard,
            start=first + at,
            items=tuple(_wanted(item, task) for item in items),
            rows=carried.slice(at, size),
            last=at == starts[-1],
            whole=task.rows is None,
            force=task.force,
        )


def _wanted(item: Item, task: Task) -> Item | None:
    """What `task` says of an item: None where it is to be left alone."""
    if task.rows is not None and item.row_id not in task.rows:
        return None
    if item.row_id in task.rejects:
        return replace(item, reject=task.rejects[item.row_id])
    return item


def row_batches(plan: Plan, manifest: Manifest, task: Task) -> Iterator[ItemBatch]:
    """The batches of a task that reads no image: without items, where all rows are wanted."""
    if task.rows is not None:
        yield from item_batches(plan, manifest, task)
        return
    rows = manifest.rows(task.shard).drop_columns(LISTING)
    first = plan.shard_rows(task.shard).start
    for at in range(0, rows.num_rows, plan.batch_size):
        here = rows.slice(at, plan.batch_size)
        last = at + here.num_rows == rows.num_rows
        yield ItemBatch(shard=task.shard, start=first + at, items=(), rows=here, last=last, force=task.force)


__all__ = ["LoadedModel", "ShardPipeline", "Task", "Written", "execute", "item_batches", "scorer", "scoring"]
