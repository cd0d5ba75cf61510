"""Decide whether a new part may replace an existing one. It may if no ok row is lost, unless the user forces it.

A part's footer has the number of rows with each status. The checksum covers the footer, so the counts of an undamaged
part are right. For a damaged part, we believe the counts if they add up to the number of rows.

    the existing part     the new one replaces it
    does not exist        always
    its counts are known  if it has at least as many ok rows
    they are not known    if it has at least one ok row (with none, the images were probably moved away)
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.errors import DamagedError, brief
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.paths import AnyPath, parquet_source
from clipbatch.types import STATUSES, counts_text

REPAIR = "clipbatch run --out {} --repair"


def refusal(path: AnyPath, shard: int, counts: Mapping[str, int]) -> str | None:
    """Why a new part of `shard` must not replace the file at `path`; None if it may. counts: its rows by status.

    Raises: InputError if a store does not answer.
    """
    if not path.exists():
        return None
    rows, ok = sum(counts.values()), counts.get("ok", 0)
    before = _counts(path, shard, rows)
    if ok >= (1 if before is None else before.get("ok", 0)):
        return None
    existing = "its rows cannot be counted" if before is None else f"its footer counts {counts_text(before)}"
    return f"{existing}, and the new rows are {counts_text(counts)}"


def read_whole(run: RunDir, plan: Plan, shard: int, fingerprint: str) -> bytes:
    """The bytes of a finished part, to copy rows from it into a new part.

    Raises: DamagedError if it is missing, damaged, or of another run: its rows would get a new, valid checksum.
    """
    path = run.part(shard, plan.shards)
    try:
        data: bytes = path.read_bytes()
    except OSError as error:
        raise damaged(run, path, f"it cannot be read ({error.strerror or error})") from error
    if not verify_file(data):
        raise damaged(run, path, "its bytes are not those that were written")
    footer = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    if (footer.get(b"clipbatch.fingerprint"), footer.get(b"clipbatch.shard")) != (fingerprint.encode(), b"%d" % shard):
        raise damaged(run, path, "it belongs to another run or is another part")
    return data


def bad_rows(run: RunDir, plan: Plan, shard: int) -> tuple[int, ...]:
    """row_ids of the rows of a finished shard that are not ok. Raises: DamagedError if they cannot be read."""
    path = run.part(shard, plan.shards)
    try:
        table = pq.read_table(parquet_source(path), columns=["row_id", "status"], page_checksum_verification=True)
        bad = pc.not_equal(table["status"].cast(pa.string()), "ok")
        return tuple(table["row_id"].filter(bad).to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, path, brief(error)) from error


def damaged(run: RunDir, path: AnyPath, what: str) -> DamagedError:
    """The error for a damaged part from which we need rows."""
    return DamagedError(f"{path} is damaged: {what}; {REPAIR.format(run.path)} writes it again")


def _counts(path: AnyPath, shard: int, rows: int) -> dict[str, int] | None:
    """Rows by status, from the footer of the part at `path`; None if they cannot be read or cannot be right."""
    try:
        footer = pq.read_metadata(parquet_source(path)).metadata or {}
        counts = json.loads(footer[b"clipbatch.counts"])
        fits = footer[b"clipbatch.shard"] == b"%d" % shard and counts.keys() <= set(STATUSES)
        return counts if fits and sum(counts.values()) == rows else None
    except (OSError, pa.ArrowException, LookupError, AttributeError, TypeError, ValueError):
        return None
