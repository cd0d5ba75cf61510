"""Compares each image with its caption: `caption_similarity` is the cosine of the two embeddings, and nothing else.

The captions of a shard are encoded ahead of its images, by threads of their own: equal ones once, in blocks whose shape
is fixed. What is in a block follows from the shard's captions alone. So it does not matter for a row's bytes which
worker does it, whether it was begun before, which images of the shard are bad, and which rows a task names.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clipbatch.config import hardware
from clipbatch.errors import InputError
from clipbatch.rundir.captions import CaptionColumn
from clipbatch.stages.encode.text_tower import TextTower
from clipbatch.types import ComparedCaptions, Decoded, EmbeddedBatch, ItemBatch

# Rows whose captions are tokenized and cut into blocks together. More fill the blocks better; less are done earlier.
_CPU_WINDOW, _GPU_WINDOW = 1024, 8192

Embeddings = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caption:
    """A caption of a shard, and where its embedding is."""

    block: Future[Embeddings]
    row: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class _Shard:
    """The captions of a shard."""

    # row_id of the first row.
    start: int
    # The column of the captions, for all rows.
    rows: pa.Table
    # For each row of a window its caption; None if there is none to compare with.
    windows: list[Future[list[str | None]]] = field(default_factory=list)
    # Those of all windows that are done.
    captions: dict[str, _Caption] = field(default_factory=dict)


class Captions:
    """The captions of all shards that one device works on.

    `begin` and `prepare` are called by the thread that makes batches, for all batches in order; `compare` is a stage
    for one thread behind them.
    """

    def __init__(self, tower: TextTower, column: CaptionColumn, *, device: str, embeddings: bool) -> None:
        """embeddings: whether those of images and captions are saved."""
        self._tower, self._column, self._embeddings = tower, column, embeddings
        self._window = _CPU_WINDOW if device == "cpu" else _GPU_WINDOW
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._encoding = ThreadPoolExecutor(
            hardware.cores() if device == "cpu" else 1, thread_name_prefix="encode-captions"
        )
        # Those whose batches are on their way. A shard is there twice if two tasks name it one after the other.
        self._shards: dict[int, deque[_Shard]] = defaultdict(deque)
        self._changing = threading.Lock()

    def begin(self, shard: int, rows: pa.Table, start: int) -> None:
        """Batches of `shard` follow. rows: all of its manifest rows. start: row_id of the first."""
        with self._changing:
            self._shards[shard].append(_Shard(start=start, rows=rows.select([self._column.name])))

    def prepare(self, batch: ItemBatch) -> None:
        """Have the captions of `batch` encoded, and those before it in the shard. Returns at once."""
        shard = self._shards[batch.shard][-1]
        end = batch.start - shard.start + batch.rows.num_rows
        while len(shard.windows) * self._window < end:
            first = len(shard.windows) * self._window
            rows = shard.rows.slice(first, self._window)
            shard.windows.append(self._tokenizing.submit(self._cut_into_blocks, shard, rows))

    def compare(self, batch: EmbeddedBatch) -> EmbeddedBatch:
        """`batch` with the cosines of its images and captions. Waits for the captions.

        Raises: InputError naming the row if the model gives NaN or infinite numbers for the caption of a good image.
        """
        source, count = batch.source, len(batch.outcomes)
        shard = self._shards[source.shard][0]
        first = source.start - shard.start
        skipped, offset = divmod(first, self._window)
        windows = shard.windows[skipped : (first + count - 1) // self._window + 1]
        texts = [text for window in windows for text in window.result()][offset : offset + count]
        captions = [None if text is None else shard.captions[text] for text in texts]
        image_BD = _on_host(batch, count, rounded=self._embeddings)
        caption_BD = np.zeros_like(image_BD)
        for slot, caption in enumerate(captions):
            if caption is not None:
                caption_BD[slot] = caption.block.result()[caption.row]
        for slot in np.flatnonzero(~np.isfinite(caption_BD).all(axis=1)).tolist():
            if isinstance(batch.outcomes[slot], Decoded):
                raise InputError(
                    f"row {source.start + slot}: the model gives NaN or infinite numbers for its caption: use "
                    "--precision bf16 or fp32, or other weights"
                )
        if source.last:
            with self._changing:
                self._shards[source.shard].popleft()
                if not self._shards[source.shard]:
                    del self._shards[source.shard]
        compared = ComparedCaptions(
            similarity_B=_cosines(image_BD, caption_BD),
            tokens_B=np.array([-1 if caption is None else caption.tokens for caption in captions], np.int32),
            caption_BD=caption_BD.astype(np.float16) if self._embeddings else None,
        )
        return replace(batch, captions=compared)

    def close(self) -> None:
        """Drop the work that nobody waits for any more."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        self._encoding.shutdown(wait=False, cancel_futures=True)

    def _cut_into_blocks(self, shard: _Shard, rows: pa.Table) -> list[str | None]:
        """The captions of a window. Tokenizes those that no earlier window has, and has them encoded."""
        texts = self._column.captions(rows)
        new = [text for text in dict.fromkeys(texts) if text is not None and text not in shard.captions]
        if not new:
            return texts
        tokens_NT, counts = self._tower.tokenize(new)
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, length in enumerate(self._tower.row_lengths(tokens_NT)):
            by_length[length].append(number)
        size = self._tower.rows
        blocks = [
            (numbers[at : at + size], length)
            for length, numbers in by_length.items()
            for at in range(0, len(numbers), size)
        ]
        for numbers, length in sorted(blocks):  # the first rows are waited for first
            block = self._encoding.submit(self._tower.embed, tokens_NT[numbers], length)
            for row, number in enumerate(numbers):
                shard.captions[new[number]] = _Caption(block=block, row=row, tokens=counts[number])
        return texts


def _on_host(batch: EmbeddedBatch, count: int, *, rounded: bool) -> Embeddings:
    """The images' embeddings. rounded: to float16, as they are saved, so that a rescoring compares the same ones."""
    image_BD = torch.as_tensor(batch.image_BD)[:count]
    return np.asarray((image_BD.half() if rounded else image_BD).float().cpu().numpy())


def _cosines(a_BD: Embeddings, b_BD: Embeddings) -> NDArray[np.float32]:
    """Row by row; 0 where a vector is zero, NaN where one has NaN."""
    wide = [vectors_BD.astype(np.float64) for vectors_BD in (a_BD, b_BD)]
    dots, a_squares, b_squares = (
        np.einsum("bd,bd->b", *pair) for pair in ((wide[0], wide[1]), (wide[0], wide[0]), (wide[1], wide[1]))
    )
    lengths = np.sqrt(a_squares * b_squares)
    return np.asarray(np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths != 0), np.float32)
