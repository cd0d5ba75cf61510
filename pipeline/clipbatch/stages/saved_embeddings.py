"""The saved embeddings of another run's part -> what the encoder gave then. No image is touched."""

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
    """Called with an `ItemBatch`, by one thread, in order."""

    def __init__(self, source: RunDir, fingerprint: str) -> None:
        """source: the run whose parts are read. fingerprint: what it was when the rescoring was planned.

        Raises: InputError where it is another run by now, or gone.
        """
        self._source, self._fingerprint, self._plan = source, fingerprint, source.plan()
        # Parts read.
        self.files = 0
        if source.fingerprint() != fingerprint:
            raise InputError(
                f"{source.path} is another run than the one whose embeddings are scored here (its fingerprint differs):"
                " restore it, or rescore it into another --out"
            )
        self._open: _Part | None = None

    def __call__(self, batch: ItemBatch) -> EmbeddedBatch:
        """Raises: InputError where the part is missing or damaged, or has other rows than the manifest."""
        if self._open is None or self._open.shard != batch.shard:
            self._open = None  # so that there are never two in memory
            self._open = self._read(batch.shard)
            self.files += 1
        part = self._open
        first = batch.start - self._plan.shard_rows(batch.shard).start
        here = slice(first, first + batch.rows.num_rows)
        if not np.array_equal(part.row_ids[here], batch.rows["row_id"].to_numpy()):
            raise self._damaged(batch.shard, "its row_ids are not the manifest's")
        outcomes: tuple[Decoded | Reject | None, ...] = part.outcomes[here]
        if batch.items:  # only some rows are wanted
            outcomes = tuple(o if item else None for o, item in zip(outcomes, batch.items, strict=True))
        return EmbeddedBatch(source=batch, outcomes=outcomes, image_BD=part.image_BD[here])

    def _read(self, shard: int) -> _Part:
        try:
            data = self._source.part(shard, self._plan.shards).read_bytes()
        except OSError as error:
            raise self._damaged(shard, f"it cannot be read ({error.strerror or error})") from error
        if not verify_file(data):
            raise self._damaged(shard, "its bytes are not those that were written")
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            footer = file.metadata.metadata
            table = file.read(columns=_COLUMNS)
        if footer[b"clipbatch.fingerprint"].decode() != self._fingerprint:
            raise self._damaged(shard, "it is of another run")
        return _Part(
            shard=shard,
            row_ids=table["row_id"].to_numpy(),
            outcomes=_outcomes(table),
            image_BD=_matrix(table["embedding"].combine_chunks()),
        )

    def _damaged(self, shard: int, what: str) -> InputError:
        path = self._source.part(shard, self._plan.shards)
        return InputError(f"{path} is damaged: {what}; clipbatch run --out {self._source.path} --repair does it again")


class _Shared(dict[tuple[Any, ...], Decoded]):
    """One `Decoded` for all images with the same facts: there are few, and making one takes a microsecond."""

    def __missing__(self, facts: tuple[Any, ...]) -> Decoded:
        width, height, decoder = facts
        self[facts] = made = Decoded(width=width, height=height, decoder=decoder)
        return made


def _outcomes(table: pa.Table) -> tuple[Decoded | Reject, ...]:
    decoders = table["decoder"].unify_dictionaries().combine_chunks()
    names = [*decoders.dictionary.to_pylist(), None]
    codes = pc.fill_null(decoders.indices, len(names) - 1).to_numpy().tolist()
    width, height = (pc.fill_null(table[name], -1).to_numpy().tolist() for name in ("width", "height"))
    shared = _Shared()
    found: list[Decoded | Reject] = [
        shared[facts] for facts in zip(width, height, map(names.__getitem__, codes), strict=True)
    ]
    bad = pc.not_equal(table["status"].cast(pa.string()), "ok").to_numpy()
    at = np.flatnonzero(bad)
    for row, facts in zip(at, table.select(_OF_REJECTS).take(at).to_pylist(), strict=True):
        found[row] = Reject(**facts)
    return tuple(found)


def _matrix(lists: pa.FixedSizeListArray) -> NDArray[np.float16]:
    """Rows that are null become zeros."""
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    image_BD = np.zeros((len(lists), lists.type.list_size), np.float16)
    image_BD[valid] = lists.flatten().to_numpy().reshape(-1, lists.type.list_size)
    return image_BD
