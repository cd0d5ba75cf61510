"""Count the rows of finished parts by status. Each part's footer has these counts, and we read each footer only once.

Footers of many parts take long to read, so `count_some` reads as many as there is time for.

We keep the counts in `.counts.json`, with the size, time and inode of each part. If one of these differs, the part was
replaced, and we read it again. The file is a cache with a digest. If it is missing or damaged, we read all footers. If
several processes write it, the last one wins.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir import captions
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir, part_name
from clipbatch.rundir.records import seal, unseal
from clipbatch.rundir.shapes import COUNT, DamagedRecordError, Every, check
from clipbatch.storage.atomic import publish
from clipbatch.storage.paths import AnyPath, StorePath, parquet_source

CACHE = ".counts.json"
# How many footers we read at the same time. File systems may be slow to answer.
_THREADS = 16
# How many are given to the threads at a time.
_AT_ONCE = 512

Counts = dict[str, int]
# By name of a part: its size in bytes, its time in nanoseconds and, on a file system, its inode.
Listing = dict[str, list[int]]


def count_statuses(run: RunDir, plan: Plan, shards: Collection[int]) -> dict[int, Counts]:
    """The rows by status of each of `shards`, which must be finished. Raises: InputError naming a damaged part."""
    return count_all(run, plan, shards)[0]


def count_all(run: RunDir, plan: Plan, shards: Collection[int]) -> tuple[dict[int, Counts], Counts | None]:
    """As `count_statuses`, and the captions of `shards` together, by `captions.count`; None if the run has none."""
    entries = _count(run, plan, shards, listing(run), lambda shard: _read(run, run.part(shard, plan.shards)), math.inf)
    statuses = {shard: entry[1] for shard, entry in entries.items()}
    if plan.run_settings().source.caption_column is None:
        return statuses, None
    compared: Counter[str] = Counter()
    for entry in entries.values():
        compared.update(entry[2] if len(entry) > 2 else {})
    return statuses, dict(compared)


def count_some(run: RunDir, plan: Plan, shards: Collection[int], listed: Listing, within_s: float) -> dict[int, Counts]:
    """As `count_statuses`, of the parts whose counts we have kept, and of as many others as we can read in `within_s`.

    listed: of the parts. A part that is damaged, or was just deleted, is left out.
    """
    end = time.monotonic() + within_s

    def read(shard: int) -> list[Counts] | None:
        if time.monotonic() < end:
            with contextlib.suppress(InputError):
                return _read(run, run.part(shard, plan.shards))
        return None

    return {shard: entry[1] for shard, entry in _count(run, plan, shards, listed, read, end).items()}


def _count(
    run: RunDir,
    plan: Plan,
    shards: Collection[int],
    listed: Listing,
    read: Callable[[int], list[Counts] | None],
    end: float,
) -> dict[int, Any]:
    """For each shard the facts of its part, its counts by status and, if the run has captions, those of captions.

    read: the counts in the footer of a shard's part; None to leave it out. end: when to stop reading footers, in
    seconds of time.monotonic().
    """
    cached = _cached(run)
    names = {shard: part_name(shard, plan.shards) for shard in shards}
    unread = [shard for shard, name in names.items() if name not in cached or cached[name][0] != listed.get(name)]
    for shard in unread:
        cached.pop(names[shard], None)
    is_new = False
    with ThreadPoolExecutor(_THREADS) as pool:
        for at in range(0, len(unread), _AT_ONCE):
            if time.monotonic() >= end:
                break
            some = unread[at : at + _AT_ONCE]
            for shard, counts in zip(some, pool.map(read, some), strict=True):
                if counts is not None:
                    cached[names[shard]], is_new = [listed.get(names[shard]), *counts], True
    if is_new:
        with contextlib.suppress(InputError), publish(run.path / CACHE) as file:
            file.write(seal(json.dumps({name: entry for name, entry in cached.items() if name in listed}).encode()))
    return {shard: cached[name] for shard, name in names.items() if name in cached}


def _read(run: RunDir, path: AnyPath) -> list[Counts]:
    try:
        footer = pq.read_metadata(parquet_source(path)).metadata
        keys = [b"clipbatch.counts", *([captions.FOOTER.encode()] if captions.FOOTER.encode() in footer else [])]
        counts: list[Counts] = [json.loads(footer[key]) for key in keys]
        for each in counts:
            check(each, Every(dict, COUNT))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair writes it again") from error
    return counts


def listing(run: RunDir) -> Listing:
    """Size in bytes, time in nanoseconds and inode of each part.

    We take these before we read the footers. If a part is replaced in between, we read it again the next time.
    """
    if isinstance(run.parts, StorePath):
        return {entry.base_name: [entry.size, entry.mtime_ns or 0] for entry in run.parts.entries()}
    stats = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(run.parts) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                stat = entry.stat()
                stats[entry.name] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return stats


def _cached(run: RunDir) -> JsonObject:
    with contextlib.suppress(OSError, DamagedRecordError):
        cached, digest = unseal((run.path / CACHE).read_bytes())
        if digest is not None:
            return cached
    return {}
