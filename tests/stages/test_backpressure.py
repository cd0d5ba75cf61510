"""The bytes in memory stay bounded while batches flow, and nothing waits for ever."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from clipbatch.config import ReadSettings
from clipbatch.stages.flow import Flow, Stage
from clipbatch.stages.read import Backpressure, Read
from clipbatch.types import Encoded, Item, ItemBatch, ReadBatch

ITEMS = 4


def _batches(folder: Path, sizes: list[int]) -> list[ItemBatch]:
    """A batch of four files for each size in bytes."""
    batches = []
    for number, size in enumerate(sizes):
        paths = [folder / f"{number}-{place}" for place in range(ITEMS)]
        for path in paths:
            path.write_bytes(bytes(size))
        items = tuple(Item(row_id=0, uri=path.name, path=str(path)) for path in paths)
        batches.append(ItemBatch(shard=0, start=number * ITEMS, items=items, rows=pa.table({}), last=False))
    return batches


def _most_held(batches: list[ItemBatch], limit_bytes: int) -> int:
    """Let `batches` through a flow of many readers; the most bytes that were read and not yet left."""
    gate, read, lock = Backpressure(limit_bytes), Read(ReadSettings(), batches=8), threading.Lock()
    held = most = 0

    def reading(batch: ItemBatch) -> ReadBatch:
        nonlocal held, most
        done = read(batch)
        with lock:
            held += _size(done)
            most = max(most, held)
        gate.measured(done)
        return done

    def leaving(batch: ReadBatch) -> int:
        nonlocal held
        with lock:
            held -= _size(batch)
        gate.release(batch)
        return batch.source.start

    stages = [Stage(name="read", work=reading, threads=8), Stage(name="decode", work=leaving, threads=2)]
    assert list(Flow(gate.admit(batches), stages)) == [batch.start for batch in batches]
    return most


def _size(batch: ReadBatch) -> int:
    return sum(len(slot.data) for slot in batch.slots if isinstance(slot, Encoded))


def test_equal_batches_never_hold_more_than_the_limit(tmp_path: Path) -> None:
    limit_bytes = 3 * ITEMS * 2**20
    assert _most_held(_batches(tmp_path, [2**20] * 30), limit_bytes) <= limit_bytes


def test_a_batch_that_is_larger_than_the_limit_passes_alone(tmp_path: Path) -> None:
    sizes = [3_000_000] * 6
    assert _most_held(_batches(tmp_path, sizes), limit_bytes=2**20) == ITEMS * sizes[0]


@pytest.mark.parametrize("sizes", [[0, 1, 2_000_000] * 8, [10] * 100, [2_000_000, *[10] * 60]])
def test_batches_of_all_sizes_pass_in_order(tmp_path: Path, sizes: list[int]) -> None:
    _most_held(_batches(tmp_path, sizes), limit_bytes=5_000_000)


def test_small_files_after_large_ones_are_let_in_freely_again(tmp_path: Path) -> None:
    large, *small = _batches(tmp_path, [3_000_000, *[10] * 40])
    gate, read = Backpressure(4 * 2**20), Read(ReadSettings())
    for batch in [large, *small[:30]]:
        assert list(gate.admit([batch])) == [batch]
        done = read(batch)
        gate.measured(done)
        gate.release(done)
    assert list(gate.admit(small[30:])) == small[30:]  # ten at once, with nothing leaving
