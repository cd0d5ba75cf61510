"""`Classifier`: label images from Python, one or millions, in files or in memory, for one caller or many."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa

from clipbatch.config import Settings, from_flat, head_files
from clipbatch.config import labels as label_sets
from clipbatch.config.label_set import LabelSet
from clipbatch.runs import heads as run_heads
from clipbatch.runs import resolving
from clipbatch.serving import process_state
from clipbatch.serving.images import AnyImage, is_image, to_batches
from clipbatch.serving.labeller import Labeller
from clipbatch.serving.results import Results
from clipbatch.serving.sharing import Entry, SharedBatches, label_entries
from clipbatch.types import Item, ItemBatch, Reject

# Batches of an `astream` that are being labelled at a time.
_AHEAD = 3


class Classifier:
    """A model that stays loaded, with the labels that images are compared with.

    >>> with Classifier(model="clipbatch-demo", labels=["cat", "dog", "ship"]) as classifier:
    ...     results = classifier.classify(["a.jpg", "https://host/b.png", image, array_HWC, tensor_CHW])
    >>> results.to_pandas()

    An image is a path or url, an encoded file's bytes, a PIL image, a NumPy array (uint8, HWC or HW), or a tensor
    (uint8, CHW or HW). Each becomes one row of the `Results`, in order, whatever is wrong with the image; a value whose
    type is no image's is a TypeError. Pixels and scores are those of `clipbatch run` with the same settings: to the bit
    in full batches, and otherwise within the precision. Images in memory are resized as the decoder pil resizes them.

    Several threads may share a Classifier. While one is open, torch computes on a CPU with one thread in this process,
    as each core has a batch of its own; the last one to close puts the number back. While it decodes with Pillow,
    Pillow neither refuses large images (`max_pixels` does) nor warns. Nothing else of the process changes.

    A Classifier does not work in a process that was forked from the one that opened it: there it raises RuntimeError at
    once. Start such processes with `multiprocessing.get_context("spawn")`, or open a Classifier in each of them.

    Images are decoded in this process. If a decoder crashes (DALI may, on a GPU), the process ends: use `run`, which
    has worker processes, or `decoder="torchvision"`.
    """

    def __init__(
        self,
        *,
        labels: str | os.PathLike[str] | Sequence[str] | None = None,
        model: str = "ViT-B-32",
        template: str | Sequence[str] = (),
        head: str | Sequence[str] | Mapping[str, str | os.PathLike[str]] = (),
        head_anyway: bool = False,
        pretrained: str | os.PathLike[str] | None = None,
        precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto",
        device: str = "auto",
        batch_size: int | None = None,
        decoder: Literal["auto", "dali", "torchvision", "pil"] = "auto",
        orientation: Literal["upright", "stored"] = "upright",
        background: str | None = None,
        max_pixels: int | None = None,
        max_bytes: int | None = None,
        read_threads: int | None = None,
        read_timeout: float | None = None,
        read_retries: int | None = None,
        root: str | os.PathLike[str] | None = None,
        score: Literal["auto", "softmax", "sigmoid", "cosine"] = "auto",
        layout: Literal["list", "wide", "top-k"] = "list",
        top_k: int | None = None,
        scores_dtype: Literal["float32", "float16"] = "float32",
        embeddings: bool = False,
    ) -> None:
        """Load the model. Every setting is the option of `clipbatch run` of that name; None is its default.

        labels: a file, a shipped set's name or a,b,c, as there, or a list of names; with embeddings or heads they may
        be left out. root: where relative names start from, and what none may lead out of. head: NAME=FILE as there, one
        or several, or a dict of files by name.
        Raises: InputError (SettingError, a ValueError, for a setting) naming the value and the remedy.
        """
        given = {name: value for name, value in locals().items() if name != "self" and value is not None}
        templates = given["template"] = (template,) if isinstance(template, str) else tuple(template)
        given["head"] = head_files.specs(head) or None
        for name in given.keys() & {"pretrained", "root"}:
            given[name] = os.fspath(given[name])
        if isinstance(labels, (str, os.PathLike)):
            given["labels"] = os.fspath(labels)
        if labels is None or isinstance(labels, (str, os.PathLike)):
            self._open(from_flat(given), None)
        else:
            del given["labels"]
            self._open(from_flat(given), label_sets.of_names(labels, templates))

    @classmethod
    def of(cls, settings: Settings, *, decode_apart: bool = False) -> Classifier:
        """A Classifier with the settings of a run. decode_apart: on a CPU, decode in a process that may die."""
        classifier = cls.__new__(cls)
        classifier._open(settings, None, decode_apart=decode_apart)
        return classifier

    def _open(self, settings: Settings, labels: LabelSet | None, *, decode_apart: bool = False) -> None:
        """labels: None for those of `settings`."""
        self.labels = label_sets.for_run(settings) if labels is None else labels
        self.settings = resolving.resolve(settings)
        resolving.check_labels(self.settings, self.labels)
        heads = run_heads.load(self.settings, self.labels)
        self._origin = process_state.Origin()
        self._sharing = threading.Lock()
        self._shared: SharedBatches | None = None
        self._closed = False
        process_state.borrow()
        try:
            with process_state.unchanged():
                self.labeller = Labeller(self.settings, self.labels, heads=heads, decode_apart=decode_apart)
        except BaseException:
            process_state.give_back()
            raise

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer what has been asked, and take nothing more. Does nothing when called again or in a forked process."""
        if self._origin.is_copy:
            return
        with self._sharing:
            if self._closed:
                return
            self._closed = True
        if self._shared:
            self._shared.close()
        self.labeller.close()
        process_state.give_back()

    def classify(self, images: Iterable[AnyImage] | AnyImage, *, progress: bool = False) -> Results:
        """One row for each of `images`, in order. progress: show a bar, in a notebook one of its own.

        Raises: TypeError naming what is no image.
        """
        tables = list(self._tables(images, progress))
        if not tables:
            return self._no_rows()
        return Results(_whole(tables))

    def classify_batch(self, images: Iterable[AnyImage] | AnyImage) -> Results:
        """As `classify`, at once and by the thread that calls. Raises: ValueError for more than a batch of them."""
        batches = list(islice(self.to_batches(images), 2))
        if len(batches) > 1:
            raise ValueError(f"more images than batch_size ({self.labeller.batch_size}): use classify, or stream")
        return Results(self._label(batches[0])) if batches else self._no_rows()

    def stream(self, images: Iterable[AnyImage], *, progress: bool = False) -> Iterator[Results]:
        """The rows of `images`, a batch at a time, in order, however many there are.

        `images` is read by another thread, and only some batches ahead; reading, decoding and encoding overlap. Rows
        are numbered through: `row_id` goes on from batch to batch.

        >>> for results in classifier.stream(pathlib.Path("photos").rglob("*.jpg")):
        ...     writer.write_table(results.table)
        """
        self._check_open()
        with _bar(images, progress) as bar, contextlib.closing(self.labeller.flow(self.to_batches(images))) as tables:
            for table in tables:
                bar.update(table.num_rows)
                yield Results(_whole([table]))

    async def aclassify(self, images: Iterable[AnyImage] | AnyImage) -> Results:
        """As `classify`, sharing batches with all others that await an answer at that moment, in any event loop.

        Who is in a batch with whom depends on time, and so may the last digits of scores (see above).
        """
        self._check_open()
        batches = list(self.to_batches(images))
        if not batches:
            return self._no_rows()
        shared = self.shared()
        return Results(_whole([await shared.label(await shared.read(batches))]))

    async def astream(self, images: Iterable[AnyImage] | AsyncIterable[AnyImage]) -> AsyncIterator[Results]:
        """As `stream`, sharing batches as `aclassify` does; `images` may come from an async generator."""
        size = self.labeller.batch_size
        chunks = _chunks(images, size) if isinstance(images, AsyncIterable) else _chunks_of(iter(images), size)
        waiting: collections.deque[asyncio.Task[Results]] = collections.deque()
        start = 0
        try:
            async for chunk in chunks:
                waiting.append(asyncio.ensure_future(self.aclassify(chunk)))
                if len(waiting) > _AHEAD:
                    results = await waiting.popleft()
                    yield results.numbered(start)
                    start += len(results)
            while waiting:
                results = await waiting.popleft()
                yield results.numbered(start)
                start += len(results)
        finally:
            for task in waiting:
                task.cancel()

    def _tables(self, images: Iterable[AnyImage] | AnyImage, progress: bool) -> Iterator[pa.Table]:
        self._check_open()
        with _bar(images, progress) as bar:
            batches = self.to_batches(images)
            first = list(islice(batches, 2))
            alone = len(first) < 2  # a single batch needs no threads
            tables: Iterator[pa.Table] = map(self._label, first) if alone else self.labeller.flow(chain(first, batches))
            for table in tables:
                bar.update(table.num_rows)
                yield table

    def to_batches(self, images: Iterable[AnyImage] | AnyImage) -> Iterator[ItemBatch]:
        """`images` in batches of `batch_size`. Raises: TypeError naming what is no image."""
        source, size = self.settings.source, self.labeller.batch_size
        return to_batches(images, size, root=source.root, max_bytes=self.settings.read.max_bytes)

    def _label(self, batch: ItemBatch) -> pa.Table:
        self._check_open()
        return self.labeller.label(self.labeller.read(batch))

    def _no_rows(self) -> Results:
        """No rows, with the columns that rows have."""
        item = Item(row_id=0, uri="", path="", reject=Reject(status="missing", error="no image"))
        return Results(label_entries(self.labeller, [Entry(item, item.reject, 0)]).slice(0, 0))

    def shared(self) -> SharedBatches:
        """What all callers of `aclassify` share; its threads start with the first of them."""
        self._check_open()
        with self._sharing:
            if self._shared is None:
                self._shared = SharedBatches(self.labeller)
            return self._shared

    def _check_open(self) -> None:
        if self._origin.is_copy:
            raise RuntimeError(
                "this Classifier was opened in another process, and a forked one has none of its threads: start "
                "processes with multiprocessing.get_context('spawn'), or open a Classifier in each of them"
            )
        if self._closed:
            raise RuntimeError("this Classifier is closed: open another one, or use it inside its with block")


def _whole(tables: list[pa.Table]) -> pa.Table:
    if len(tables) == 1 and all(column.num_chunks == 1 for column in tables[0].columns):
        return tables[0]
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _bar(images: Any, wanted: bool) -> Any:
    """A progress bar over `images`, as the terminal or the notebook shows it."""
    if not wanted:
        return contextlib.nullcontext(_NoBar())  # tqdm starts a thread even for a bar that it does not show
    from tqdm.auto import tqdm

    total = 1 if is_image(images) else len(images) if hasattr(images, "__len__") else None
    return tqdm(total=total, unit=" images")


class _NoBar:
    def update(self, count: int) -> None:
        pass


async def _chunks(images: AsyncIterable[AnyImage], size: int) -> AsyncIterator[list[AnyImage]]:
    chunk: list[AnyImage] = []
    async for image in images:
        chunk.append(image)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _chunks_of(images: Iterator[AnyImage], size: int) -> AsyncIterator[list[AnyImage]]:
    """As `_chunks`, of images that are waited for in a thread, as that may take long."""
    while chunk := await asyncio.to_thread(lambda: list(islice(images, size))):
        yield chunk
