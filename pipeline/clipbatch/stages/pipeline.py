"""Joins the stages into a pipeline that turns the shards of a run into parts.

`ShardPipeline` connects read, decode, encode, score and write, in the order of the table in
docs/explanation/how-an-image-flows.md. `execute` runs tasks through it; every worker uses this loop. The pipeline does
not drain between shards: while one shard is written, the images of the next one are already being decoded. It knows
nothing about other workers, signals or progress bars.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbatch.config import Settings
from clipbatch.config.heads import HeadFile
from clipbatch.config.label_set import LabelSet
from clipbatch.config.scoring import check_scoring
from clipbatch.errors import InputError, OtherRunError
from clipbatch.rundir import captions, features, head_weights
from clipbatch.rundir.damage import protect
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.records import frozen_choices
from clipbatch.stages.batches import Task, item_batches, row_batches
from clipbatch.stages.captions import Captions
from clipbatch.stages.ceilings import Meter, ceiling
from clipbatch.stages.cuda import check_device, device_facts
from clipbatch.stages.decode import Decode
from clipbatch.stages.encode import Model, label_features, load
from clipbatch.stages.encode.text_tower import TextTower
from clipbatch.stages.flow import Flow, Stage, bottleneck
from clipbatch.stages.heads import Heads, check_model
from clipbatch.stages.journal import Journal
from clipbatch.stages.loading import LoadedModel, fit
from clipbatch.stages.profiling import ranged
from clipbatch.stages.read import Backpressure, Read, Refusals
from clipbatch.stages.saved_embeddings import SavedEmbeddings
from clipbatch.stages.score import Score
from clipbatch.stages.write import Write, Written
from clipbatch.storage import retries
from clipbatch.types import Encoded, ItemBatch, PartDone, ScoredBatch, WorkerReport

_REPORT_EVERY_S = 0.2
# Files whose size decides how the decoders of a GPU share the work.
SAMPLE = 64


def scorer(
    text_LD: NDArray[np.float32],
    facts: Mapping[str, Any],
    kind: str,
    *,
    labels: LabelSet,
    embeddings: bool,
    device: str,
    heads: Sequence[HeadFile] = (),
) -> Score:
    """The score stage for the label features `text_LD`. facts: those of the model. kind: the result of `scoring`."""
    return Score(
        text_LD,
        device=device,
        kind=kind,
        logit_scale=facts["logit_scale"],
        logit_bias=facts["logit_bias"],
        labels=labels,
        embeddings=embeddings,
        heads=Heads(heads, device) if heads else None,
    )


def scoring(settings: Settings, facts: Mapping[str, Any]) -> str:
    """How scores are computed: softmax or sigmoid, as `settings.output.score` says. auto: as the model was trained."""
    if settings.output.score != "auto":
        return settings.output.score
    return "softmax" if facts["logit_bias"] is None else "sigmoid"


class ShardPipeline:
    """All stages of a run on one device: from the items of a shard to its part."""

    def __init__(
        self,
        run: RunDir,
        fingerprint: str,
        device: str,
        runtime: Mapping[str, Any],
        journal: Journal,
        model: LoadedModel | None = None,
    ) -> None:
        """fingerprint: of the plan to follow. runtime: the settings of this invocation, `Settings.runtime`. model: one
        that was loaded with the settings of the plan; None: load it.

        Raises: InputError if the model cannot be loaded, or is not the one that the run was started with.
        """
        self._plan, self._device = (plan := run.plan_of(fingerprint)), device
        self._settings = settings = plan.run_settings().replace(**runtime)
        check_device(device)
        saved = None if plan.rescored is None else RunDir(plan.rescored)
        self._manifest = Manifest(run, plan)
        if saved is None:
            model = self._loaded(run, model)
        facts = model.model.facts() if model else (saved and saved.model_facts()) or {}
        kind = scoring(settings, facts)
        if run.model_facts() is None and plan.labels.scoring is not None:  # what only the loaded model tells
            check_scoring(plan.labels, settings.output.score, facts["logit_bias"] is not None, settings.model.model)
        # Checked again: loading takes long, and what is frozen now binds all later workers.
        run.check_stands(plan, fingerprint)

        def text_model() -> Model:
            return model.model if model else load_the_same(settings, facts)

        def encode_labels() -> NDArray[np.float32]:
            return label_features(text_model(), plan.labels)

        text_LD, text_sha256 = features.freeze(run, plan, encode_labels)
        head_files, anyway = head_weights.load(run, plan), bool(settings.labels.head_anyway)
        if run.model_facts() is None:
            check_model(plan.heads, settings.model, facts, text_LD.shape[1], anyway=anyway)
        more = {"score": kind, "text_sha256": text_sha256}
        try:
            sealed = run.freeze_model({**facts, **(model.facts if model else {}), **more})
        except OtherRunError:  # another worker may have been first, and have found out other things about its device
            standing = frozen_choices(run.model_facts() or {})
            if model is None or model.facts == standing:
                raise
            model.decode.close()
            model = None  # frees its memory before the model is loaded again
            model = self._loaded(run, model)
            sealed = run.freeze_model({**facts, **model.facts, **more})
        protect(run, plan)
        embeddings = settings.output.embeddings
        score = scorer(text_LD, facts, kind, labels=plan.labels, embeddings=embeddings, device=device, heads=head_files)
        write = Write(run, plan, fingerprint=sealed, score=kind, embedding=text_LD.shape[1])
        check = functools.partial(run.check_stands, plan, fingerprint)
        self._encoded: Callable[[], dict[str, float]] = dict
        self._waited_s: Callable[[], dict[str, float]] = dict
        self._admit: Callable[[Iterator[ItemBatch]], Iterator[ItemBatch]] = iter
        self.read: Read | SavedEmbeddings
        refusals: Refusals | None = None
        if model:
            gate = Backpressure()
            model.read.forget()
            self.read, self._admit, self._encoded = model.read, gate.admit, model.encode.facts
            if isinstance(model.decode, Decode):
                self._waited_s = model.decode.waited_s
            refusals = Refusals(settings.read.max_refused, model.read.probe)
            first = model.stages(gate, journal, refusals=refusals)
        else:
            assert saved
            self.read = SavedEmbeddings(saved, plan.identity["rescored"])
            first = [Stage(name="recall", work=self.read)]

        def settle(shard: int) -> None:
            if refusals:
                refusals.settle(plan.shard_rows(shard))

        last = _checked_write(journal if model else None, write, check, settle)
        self._captions: Captions | None = None
        if column := captions.column_of(run, plan):
            tower = TextTower(text_model(), precision=settings.model.precision, device=device)
            self._captions = Captions(tower, column, device=device, embeddings=settings.output.embeddings)
            first.append(Stage(name="captions", work=self._captions.compare))
        self.stages = [*first, Stage(name="score", work=score), Stage(name="write", work=last)]
        self._flow: Flow | None = None
        self._waits_before, self._waited_before_s = retries.waits(), self._waited_s()
        # Measures while `execute` runs.
        self.meter = Meter()

    def _loaded(self, run: RunDir, model: LoadedModel | None) -> LoadedModel:
        """`model` if it does what the first worker froze, or else one that is loaded now."""
        if (standing := run.model_facts()) is None:
            standing = self._plan.fitted
        if model and (standing is None or model.facts == frozen_choices(standing)):
            return model
        return fit(self._settings, self._plan.batch_size, self._device, standing, self._sample)

    def _sample(self) -> list[bytearray]:
        """The first files of the run."""
        items = self._manifest.items(self._manifest.rows(0).slice(0, SAMPLE))
        batch = ItemBatch(shard=0, start=0, items=tuple(items), rows=self._manifest.rows(0).slice(0, SAMPLE), last=True)
        read = Read(self._settings.read)(batch)
        return [content.data for content in read.slots if isinstance(content, Encoded)]

    def report(self) -> WorkerReport:
        """Times, memory and facts of the work done so far."""
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        times = self._flow.times() if self._flow else {}
        loads, waited_s = self.meter.figures(), self._waited_s()
        decoding_s = {way: seconds - self._waited_before_s[way] for way, seconds in waited_s.items()}
        reached = ceiling(times, loads, decoding_s, remote=isinstance(self.read, Read) and self.read.remote)
        facts = device_facts(self._device) | self._encoded() | loads | ({"ceiling": reached} if reached else {})
        waits = retries.waits_since(self._waits_before)
        return WorkerReport(times=times, peak_mib=peak_mib, facts=facts, waits=waits)

    def label(self, tasks: Iterable[Task]) -> Flow:
        """The flow that processes `tasks`. Iterating over it yields a `Written` for each batch, in order."""
        batches = (batch for task in tasks for batch in self._batches(task))
        self._flow = Flow(self._admit(batches), [ranged(stage, self._device) for stage in self.stages])
        return self._flow

    def close(self) -> None:
        """Drop the work that was begun and that nobody waits for any more."""
        if self._captions:
            self._captions.close()

    def _batches(self, task: Task) -> Iterator[ItemBatch]:
        cut = row_batches if self._plan.rescored else item_batches
        rows = self._manifest.rows(task.shard)
        if self._captions:
            self._captions.begin(task.shard, rows, self._plan.shard_rows(task.shard).start)
        for batch in cut(self._plan, self._manifest, task, rows):
            if self._captions:
                self._captions.prepare(batch)
            yield batch


def execute(
    pipeline: ShardPipeline,
    tasks: Iterable[Task],
    *,
    on_part: Callable[[PartDone], object],
    on_batches: Callable[[int, Counter[str], str], object] = lambda *_: None,
) -> Iterator[Written]:
    """Process `tasks`, and yield a `Written` for each batch, in order. Every worker runs this loop.

    on_part: called with each part after it is published. on_batches: called every 0.2 seconds, and before `on_part`,
    with the rows since its last call, the bad ones of them by status, and the name of the slowest stage.
    """
    flow, rows, bad = pipeline.label(tasks), 0, Counter[str]()
    last_report = time.perf_counter()
    with contextlib.closing(pipeline), pipeline.meter, contextlib.closing(iter(flow)) as results:  # type: ignore[type-var]
        for written in results:
            rows, bad = rows + written.rows, bad + written.bad
            now = time.perf_counter()
            if written.part or now - last_report > _REPORT_EVERY_S:
                on_batches(rows, bad, bottleneck(flow.times()))
                rows, bad, last_report = 0, Counter(), now
            if written.part:
                on_part(written.part)
            yield written


def load_the_same(settings: Settings, facts: Mapping[str, Any]) -> Model:
    """The model whose embeddings were saved. Raises: InputError if its weights have changed since."""
    model = load(settings.model)
    if model.weights_sha256 != facts["weights_sha256"]:
        raise InputError(
            f"the weights {settings.model.pretrained or model.name} are not those that made the embeddings "
            f"(sha256 now {model.weights_sha256[:12]}..., then {facts['weights_sha256'][:12]}...): put those back"
        )
    return model


def _checked_write(
    journal: Journal | None, write: Write, check: Callable[[], object], settle: Callable[[int], object]
) -> Callable[[ScoredBatch], Written]:
    """The write stage, which also notes in the journal that a batch is done.

    journal: None if no images are decoded. check: raises if somebody has deleted the run meanwhile. It is called before
    and after a part is published, so that no part of the deleted run stays in a new one. settle: called with a shard
    before it is published; raises if its rows failed for a reason that is not theirs.
    """

    def checked(batch: ScoredBatch) -> Written:
        if batch.source.last:
            check()
            settle(batch.source.shard)
        try:
            written = write(batch)
        except InputError:
            check()  # the folder may be missing because the run was deleted
            raise
        if written.part:
            try:
                check()
            except OtherRunError:
                write.withdraw(batch.source.shard)
                raise
        if journal:
            journal.leave(batch.source.start)
        return written

    return checked


__all__ = ["LoadedModel", "ShardPipeline", "Task", "Written", "execute", "scorer", "scoring"]
