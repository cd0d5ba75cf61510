"""What many callers share: threads that read, batches, and one lane for the largest images.

Images of different callers are labelled in the same batches, so they wait for one another. A very large image would
make all of its batch wait for seconds and take gigabytes, so such images go through a lane of their own, one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from clipbatch.serving.batching import Batcher
from clipbatch.serving.images import ROWS, already_read
from clipbatch.serving.labeller import Labeller
from clipbatch.stages.decode.header import inspect
from clipbatch.stages.pillow import with_image
from clipbatch.types import Encoded, Item, ItemBatch, Picture, ReadBatch, Reject

# 33.6 megapixels: images with more take the lane.
LARGE_PIXELS = 2**25
_READS_AT_ONCE = 32


class Entry(NamedTuple):
    """One image of a caller, as it was read."""

    item: Item
    content: Encoded | Picture | Reject | None
    # As the image's header states them; 0 where there is no image, or one that is too large to be decoded.
    pixels: int


class SharedBatches:
    """Labels images of many callers, in any event loop."""

    def __init__(self, labeller: Labeller) -> None:
        threads = max(labeller.model.decode.threads, labeller.model.encode.threads)
        self._labeller = labeller
        self._batcher = Batcher(self._label, size=labeller.batch_size, threads=threads)
        self._readers = ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="reads")
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="large-images")

    async def read(self, batches: Sequence[ItemBatch]) -> list[Entry]:
        """Read the images of a caller, and what their headers say of their size."""
        loop = asyncio.get_running_loop()
        going = [loop.run_in_executor(self._readers, self._read, batch) for batch in batches]
        return [entry for entries in await asyncio.gather(*going) for entry in entries]

    async def label(self, entries: Sequence[Entry]) -> pa.Table:
        """The rows of one or more images, in order."""
        large = [at for at, entry in enumerate(entries) if entry.pixels > LARGE_PIXELS]
        if not large:
            return await asyncio.wrap_future(self._batcher.submit(entries))
        others = [at for at in range(len(entries)) if at not in set(large)]
        loop = asyncio.get_running_loop()
        going = [loop.run_in_executor(self._lane, self._label, [entries[at]]) for at in large]
        if others:
            shared = asyncio.wrap_future(self._batcher.submit([entries[at] for at in others]))
            tables = await asyncio.gather(shared, *going)
        else:
            tables = await asyncio.gather(*going)
        order = sorted(range(len(entries)), key=[*others, *large].__getitem__)
        return pa.concat_tables(tables).unify_dictionaries().combine_chunks().take(order)

    def close(self) -> None:
        """Answer what has been asked, and take nothing more."""
        self._readers.shutdown()
        self._lane.shutdown()
        self._batcher.close()

    def _read(self, batch: ItemBatch) -> list[Entry]:
        read = already_read(batch) or self._labeller.read(batch)
        items = (item for item in batch.items if item is not None)
        most = self._labeller.max_pixels
        return [
            Entry(item, content, pixels if (pixels := _pixels(content)) <= most else 0)
            for item, content in zip(items, read.slots, strict=True)
        ]

    def _label(self, entries: Sequence[Entry]) -> pa.Table:
        return label_entries(self._labeller, entries)


def label_entries(labeller: Labeller, entries: Sequence[Entry]) -> pa.Table:
    """The rows of up to `batch_size` images, by the thread that calls."""
    items = tuple(entry.item for entry in entries)
    rows = pa.table([[item.row_id for item in items], [item.uri or None for item in items]], schema=ROWS)
    source = ItemBatch(shard=0, start=0, items=items, rows=rows, last=False)
    return labeller.label(ReadBatch(source=source, slots=tuple(entry.content for entry in entries)))


def _pixels(content: Encoded | Picture | Reject | None) -> int:
    """Width times height of an image; 0 where it cannot be opened, and so is not decoded."""
    if isinstance(content, Picture):
        return content.image.width * content.image.height
    if not isinstance(content, Encoded):
        return 0
    if header := inspect(content.data):
        return header.width * header.height
    try:
        return with_image(content.data, lambda image, _: image.width * image.height)
    except Exception:  # whatever Pillow's parsers raise; decoding says what is wrong
        return 0


__all__ = ["LARGE_PIXELS", "Entry", "SharedBatches", "label_entries"]
