"""May a new part replace the one that is there? Only where no row that was ok is lost, unless somebody insists.

A part's footer counts its rows by status. The seal covers the footer, so the counts of a whole part are right. Those of
a damaged part are what we know of it as long as they add up; nothing is known of it where they do not.

    the part that is there     a new one replaces it
    none                       always
    its counts can be read     with as many ok rows, or more
    they cannot                with one ok row, or more: a shard without any looks like images that have moved away

Knows nothing of shards that are open, or of what a part holds beside its rows' status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.errors import DamagedError, brief
from clipbatch.rundir.checksum import verify_file
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.storage.paths import AnyPath, parquet_source
from clipbatch.types import STATUSES, counts_text

REPAIR = "clipbatch run --out {} --repair"


def refusal(path: AnyPath, shard: int, counts: Mapping[str, int]) -> str | None:
    """Why a new part of `shard`, with `counts` rows by status, must not replace the file at `path`; None: it may.

    Raises: InputError where a store does not answer.
    """
    if not path.exists():
        return None
    rows, ok = sum(counts.values()), counts.get("ok", 0)
    before = _counts(path, shard, rows)
    if ok >= (1 if before is None else before.get("ok", 0)):
        return None
    held = "its rows cannot be counted" if before is None else f"its footer counts {counts_text(before)}"
    return f"{held}, and the new rows are {counts_text(counts)}"


def read_whole(run: RunDir, plan: Plan, shard: int, fingerprint: str) -> bytes:
    """The bytes of a finished part of this run, to take rows over from it.

    Raises: DamagedError where it is not there, damaged, or of another run: its rows would get a new, valid seal.
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
        raise damaged(run, path, "it is of another run or shard")
    return data


def bad_rows(run: RunDir, plan: Plan, shard: int) -> tuple[int, ...]:
    """row_ids of the rows without scores of a finished shard. Raises: DamagedError where they cannot be read."""
    path = run.part(shard, plan.shards)
    try:
        table = pq.read_table(parquet_source(path), columns=["row_id", "status"], page_checksum_verification=True)
        bad = pc.not_equal(table["status"].cast(pa.string()), "ok")
        return tuple(table["row_id"].filter(bad).to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, path, brief(error)) from error


def damaged(run: RunDir, path: AnyPath, what: str) -> DamagedError:
    """The refusal to take rows over from the part at `path`."""
    return DamagedError(f"{path} is damaged: {what}; {REPAIR.format(run.path)} does it again")


def _counts(path: AnyPath, shard: int, rows: int) -> dict[str, int] | None:
    """Rows by status as the footer says; None where it says nothing that can be so."""
    try:
        footer = pq.read_metadata(parquet_source(path)).metadata or {}
        counts = json.loads(footer[b"clipbatch.counts"])
        fits = footer[b"clipbatch.shard"] == b"%d" % shard and counts.keys() <= set(STATUSES)
        return counts if fits and sum(counts.values()) == rows else None
    except (OSError, pa.ArrowException, LookupError, AttributeError, TypeError, ValueError):
        return None
