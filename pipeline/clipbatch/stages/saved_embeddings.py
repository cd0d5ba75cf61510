"""Reads the saved embeddings of another run, in place of the read, decode and encode stages. Opens no image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.layout import RunDir
from clipbatch.types import Decoded, EmbeddedBatch, ItemBatch, Reject

_OF_REJECTS = ["status", "error", "width", "height"]
_COLUMNS = ["row_id", *_OF_REJECTS, "decoder", "embedding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    shard: int
    row_ids: NDArray[np.int64]
    outcomes: tuple[Decoded | Reject, ...]
    image_BD: NDArray[np.float16]


class SavedEmbeddings:
    """A stage for one thread: turns each `ItemBatch`, in order, into an `EmbeddedBatch`."""

    def __init__(self, source: RunDir, fingerprint: str) -> None:
        """source: the run whose parts are read. fingerprint: that of `source` when the rescoring was planned.

        Raises: InputError if `source` has another fingerprint now, or is gone.
        """
        self._source, self._fingerprint, self._plan = source, fingerprint, source.plan()
        # How many parts have been read.
        self.files = 0
        if source.fingerprint() != fingerprint:
            raise InputError(
                f"{source.path} is not the run whose embeddings this run scores (its fingerprint differs): restore it, "
                "or rescore it into another --out"
            )
        self._open: _Part | None = None

    def __call__(self, batch: ItemBatch) -> EmbeddedBatch:
        """Raises: InputError if the part is missing or damaged, or has other rows than the manifest."""
        # Not the batch's own shard: a run that was compacted has larger shards than the run that it scores. A batch
        # lies in one shard of either, since its size divides the shard size of the run that it scores.
        shard = batch.start // self._plan.shard_size
        if self._open is None or self._open.shard != shard:
            self._open = None  # frees the old part before the next one is read
            self._open = self._read(shard)
            self.files += 1
        part = self._open
        first = batch.start - self._plan.shard_rows(shard).start
        rows = slice(first, first + batch.rows.num_rows)
        if not np.array_equal(part.row_ids[rows], batch.rows["row_id"].to_numpy()):
            raise self._damaged(shard, "its row_ids are not the manifest's")
        outcomes: tuple[Decoded | Reject | None, ...] = part.outcomes[rows]
        if batch.items:  # the task names the rows to do
            outcomes = tuple(o if item else None for o, item in zip(outcomes, batch.items, strict=True))
        return EmbeddedBatch(source=batch, outcomes=outcomes, image_BD=part.image_BD[rows])

    def _read(self, shard: int) -> _Part:
        try:
            data = self._source.part(shard, self._plan.shards).read_bytes()
        except OSError as error:
            raise self._damaged(shard, f"it cannot be read ({error.strerror or error})") from error
        if not verify_file(data):
            raise self._damaged(shard, "its bytes have changed since it was written")
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            footer = file.metadata.metadata
            table = file.read(columns=_COLUMNS)
        if footer[b"clipbatch.fingerprint"].decode() != self._fingerprint:
            raise self._damaged(shard, "it belongs to another run")
        return _Part(
            shard=shard,
            row_ids=table["row_id"].to_numpy(),
            outcomes=_outcomes(table),
            image_BD=_matrix(table["embedding"].combine_chunks()),
        )

    def _damaged(self, shard: int, problem: str) -> InputError:
        path = self._source.part(shard, self._plan.shards)
        return InputError(
            f"{path} is damaged: {problem}; clipbatch run --out {self._source.path} --repair makes it again"
        )


class _Shared(dict[tuple[Any, ...], Decoded]):
    """One `Decoded` for all images with the same facts. There are few different ones, and each costs a microsecond."""

    def __missing__(self, facts: tuple[Any, ...]) -> Decoded:
        width, height, decoder = facts
        self[facts] = decoded = Decoded(width=width, height=height, decoder=decoder)
        return decoded


def _outcomes(table: pa.Table) -> tuple[Decoded | Reject, ...]:
    decoders = table["decoder"].unify_dictionaries().combine_chunks()
    names = [*decoders.dictionary.to_pylist(), None]
    codes = pc.fill_null(decoders.indices, len(names) - 1).to_numpy().tolist()
    width, height = (pc.fill_null(table[name], -1).to_numpy().tolist() for name in ("width", "height"))
    shared = _Shared()
    outcomes: list[Decoded | Reject] = [
        shared[facts] for facts in zip(width, height, map(names.__getitem__, codes), strict=True)
    ]
    bad = pc.not_equal(table["status"].cast(pa.string()), "ok").to_numpy()
    at = np.flatnonzero(bad)
    for row, facts in zip(at, table.select(_OF_REJECTS).take(at).to_pylist(), strict=True):
        outcomes[row] = Reject(**facts)
    return tuple(outcomes)


def _matrix(lists: pa.FixedSizeListArray) -> NDArray[np.float16]:
    """The embeddings as a matrix; rows that are null become zeros."""
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    image_BD = np.zeros((len(lists), lists.type.list_size), np.float16)
    image_BD[valid] = lists.flatten().to_numpy().reshape(-1, lists.type.list_size)
    return image_BD
