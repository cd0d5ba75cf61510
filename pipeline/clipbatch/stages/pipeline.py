"""What a worker does: join the stages over the shards that it is given. Reads like the table in
docs/explanation/how-an-image-flows.md.

Knows nothing of other workers, of signals or of progress bars: it is handed shards and hands back what became of
each batch. The pipeline does not drain between shards.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from clipbatch.config import Settings
from clipbatch.errors import InputError
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import LISTING
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import Encode, Model, check_device, device_facts, load, text_features
from clipbatch.stages.encode.text import npy_bytes
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.journal import Journal
from clipbatch.stages.profiling import ranged
from clipbatch.stages.read import Gate, Read
from clipbatch.stages.saved_embeddings import Recall
from clipbatch.stages.score import Score
from clipbatch.stages.write import Write, Written
from clipbatch.types import Item, ItemBatch, PixelBatch, ReadBatch, Reject, ScoredBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A shard to do: all of it, or only the rows named (row_ids), which replaces these rows in its part."""

    shard: int
    rows: frozenset[int] | None = None
    rejects: Mapping[int, Reject] = field(default_factory=dict)
    """Rows (row_ids) that have ended a worker before, and are not to be touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded model and the stages that know no run: what a process can keep from one run to the next."""

    model: Model
    read: Read
    decode: Decode
    encode: Encode

    @staticmethod
    def load(settings: Settings, batch_size: int, device: str, say: Callable[[str], object] = print) -> Loaded:
        """settings: resolved. say: told what the user should know.

        Raises: InputError where the model cannot be had."""
        model = load(settings.model)
        target = Target(
            height=model.height,
            width=model.width,
            resize_mode=model.resize_mode,
            interpolation=model.interpolation,
            fill=model.fill,
        )
        decode = Decode(settings.decode, target, batch_size=batch_size, device=device, say=say)
        encode = Encode(
            model,
            precision=settings.model.precision,
            device=device,
            batch_size=batch_size,
            compiles=settings.model.compile == "on" and device != "cpu",
            say=say,
        )
        return Loaded(model=model, read=Read(settings.read, batches=4 * decode.threads), decode=decode, encode=encode)


def scoring(settings: Settings, facts: Mapping[str, Any]) -> str:
    """How scores are made: `settings.output.score`, with auto replaced by how the model with `facts` was trained."""
    if settings.output.score != "auto":
        return settings.output.score
    return "softmax" if facts["logit_bias"] is None else "sigmoid"


class Worker:
    """A loaded model with the stages around it, on one device."""

    def __init__(
        self,
        run: RunDir,
        fingerprint: str,
        device: str,
        runtime: Mapping[str, Any],
        journal: Journal,
        say: Callable[[str], object] = print,
        engine: Loaded | None = None,
    ) -> None:
        """fingerprint: of the plan to go by. runtime: settings that this invocation chose anew (`config.RUNTIME`).
        say: told what the user should know. engine: loaded before with the settings of the plan; None to load it.

        Raises: InputError where the model cannot be had, or is not the one that the run was begun with."""
        self._plan, self._device = (plan := run.plan_of(fingerprint)), device
        self._settings = settings = plan.run_settings().replace(**runtime)
        check_device(device)
        saved = None if plan.rescored is None else RunDir(plan.rescored)
        if saved is None and engine is None:
            engine = Loaded.load(settings, plan.batch_size, device, say)
        model = engine.model if engine else None
        facts = model.facts() if model else (saved and saved.model_facts()) or {}
        kind = scoring(settings, facts)
        run.plan_of(fingerprint)  # again, as loading takes long, and what is frozen now is for whoever comes after
        sealed = run.freeze_model({**facts, "score": kind})
        frozen = run.frozen("text.npy")
        if frozen is None:
            features = text_features(model or _load_the_same(settings, facts), plan.labels.prompts)
            frozen = run.freeze("text.npy", npy_bytes(features))
        text_LD = np.load(io.BytesIO(frozen))
        score = Score(
            text_LD,
            device=device,
            kind=kind,
            logit_scale=facts["logit_scale"],
            logit_bias=facts["logit_bias"],
            groups=plan.labels.sizes,
            embeddings=settings.output.embeddings,
        )
        write = Write(run, plan, fingerprint=sealed, score=kind, embedding=text_LD.shape[1])
        self.read: Read | Recall
        self._encoded: Callable[[], dict[str, float]] = dict
        self._admit: Callable[[Iterator[ItemBatch]], Iterator[ItemBatch]]
        self.stages = [
            *(self._from_images(engine, journal) if engine else self._from_embeddings(saved)),
            Stage(name="score", work=score),
            Stage(name="write", work=_leaving(None if saved else journal, write, lambda: run.plan_of(fingerprint))),
        ]
        self._manifest = Manifest(run, plan)

    def _from_images(self, engine: Loaded, journal: Journal) -> list[Stage]:
        read, decode, encode, gate = engine.read, engine.decode, engine.encode, Gate()
        self._encoded = encode.facts
        self.read, self._admit = read, gate.admit
        return [
            Stage(name="read", work=_weighed(gate, read), threads=read.batches),
            Stage(name="decode", work=_entering(journal, gate, decode), threads=decode.threads),
            Stage(name="encode", work=encode, threads=encode.threads),
        ]

    def _from_embeddings(self, saved: RunDir | None) -> list[Stage]:
        assert saved
        recall = Recall(saved, self._plan.identity["rescored"])
        self.read, self._admit = recall, iter
        return [Stage(name="recall", work=recall)]

    def device_facts(self) -> dict[str, str | float]:
        """The device in words, its peak memory, and what came of memory and precision."""
        return device_facts(self._device) | self._encoded()

    def label(self, tasks: Iterable[Task]) -> Flow:
        """Do `tasks`; iterate over the flow to get a `Written` for each batch, in order."""
        cut = row_batches if self._plan.rescored else item_batches
        batches = (batch for task in tasks for batch in cut(self._plan, self._manifest, task))
        return Flow(self._admit(batches), [ranged(stage, self._device) for stage in self.stages])


def _load_the_same(settings: Settings, facts: Mapping[str, Any]) -> Model:
    """The model whose embeddings were saved. Raises: InputError where its weights are others by now."""
    model = load(settings.model)
    if model.weights_sha256 != facts["weights_sha256"]:
        raise InputError(
            f"the weights {settings.model.pretrained or model.name} are not those that the embeddings were made with "
            f"(sha256 {model.weights_sha256[:12]}... now, {facts['weights_sha256'][:12]}... then): put these back"
        )
    return model


def _weighed(gate: Gate, read: Read) -> Callable[[ItemBatch], ReadBatch]:
    def noted(batch: ItemBatch) -> ReadBatch:
        done = read(batch)
        gate.has_read(done)
        return done

    return noted


def _entering(journal: Journal, gate: Gate, decode: Decode) -> Callable[[ReadBatch], PixelBatch]:
    def noted(batch: ReadBatch) -> PixelBatch:
        journal.enter(batch.source.start, len(batch.slots))
        pixels = decode(batch)
        gate.leave(batch)
        return pixels

    return noted


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
        yield ItemBatch(
            shard=task.shard, start=first + at, items=(), rows=here, last=at + here.num_rows == rows.num_rows
        )


__all__ = ["Loaded", "Task", "Worker", "Written", "item_batches", "scoring"]
