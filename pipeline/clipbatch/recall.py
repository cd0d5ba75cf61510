"""The saved embeddings of another run's part -> what the encoder gave then. No image is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.rundir import RunDir
from clipbatch.seal import is_whole
from clipbatch.types import Decoded, EmbeddedBatch, ItemBatch, Reject

_COLUMNS = ["row_id", "status", "error", "width", "height", "decoder", "embedding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    shard: int
    row_ids: NDArray[np.int64]
    outcomes: tuple[Decoded | Reject, ...]
    image_BD: NDArray[np.float16]


class Recall:
    """Called with an `ItemBatch`, by one thread, in order."""

    def __init__(self, source: RunDir, fingerprint: str) -> None:
        """source: the run whose parts are read. fingerprint: what it was when the rescoring was planned.

        Raises: InputError where it is another run by now, or gone.
        """
        self._source, self._fingerprint, self._plan = source, fingerprint, source.plan()
        self.files = 0
        """Parts read."""
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
        here = slice(first, first + len(batch.items))
        if not np.array_equal(part.row_ids[here], batch.rows["row_id"].to_numpy()):
            raise self._damaged(batch.shard, "its row_ids are not the manifest's")
        outcomes = zip(batch.items, part.outcomes[here], strict=True)
        return EmbeddedBatch(
            source=batch,
            outcomes=tuple(None if item is None else outcome for item, outcome in outcomes),
            image_BD=part.image_BD[here],
        )

    def _read(self, shard: int) -> _Part:
        try:
            data = self._source.part(shard, self._plan.shards).read_bytes()
        except OSError as error:
            raise self._damaged(shard, f"it cannot be read ({error.strerror or error})") from error
        if not is_whole(data):
            raise self._damaged(shard, "its bytes are not those that were written")
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            footer = file.metadata.metadata
            table = file.read(columns=_COLUMNS)
        if footer[b"clipbatch.fingerprint"].decode() != self._fingerprint:
            raise self._damaged(shard, "it is of another run")
        facts: list[list[Any]] = [table[name].to_pylist() for name in _COLUMNS[1:-1]]
        return _Part(
            shard=shard,
            row_ids=table["row_id"].to_numpy(),
            outcomes=tuple(map(_outcome, *facts)),
            image_BD=_matrix(table["embedding"].combine_chunks()),
        )

    def _damaged(self, shard: int, what: str) -> InputError:
        path = self._source.part(shard, self._plan.shards)
        return InputError(f"{path} is damaged: {what}; clipbatch run --out {self._source.path} --repair does it again")


def _outcome(status: Any, error: Any, width: Any, height: Any, decoder: Any) -> Decoded | Reject:
    if status == "ok":
        return Decoded(width=width, height=height, decoder=decoder)
    return Reject(status=status, error=error, width=width, height=height)


def _matrix(lists: pa.FixedSizeListArray) -> NDArray[np.float16]:
    """Rows that are null become zeros."""
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    image_BD = np.zeros((len(lists), lists.type.list_size), np.float16)
    image_BD[valid] = lists.flatten().to_numpy().reshape(-1, lists.type.list_size)
    return image_BD
