"""How many rows of which status finished parts have, as their footers say; each footer is read once.

What was read is kept in `.counts.json`, with the size, time and file number that the part had then: a part that was
replaced differs in one of them and is read again. The file is a cache, and carries a digest of its own. Without it, or
where it is damaged, everything is read, and of many writers the last one's stays.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.layout import Plan, RunDir, part_name
from clipbatch.rundir.records import seal, unseal
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.storage.atomic import publish
from clipbatch.storage.paths import AnyPath, StorePath, parquet_source

CACHE = ".counts.json"
# Footers read at the same time, for file systems that are slow to answer.
_THREADS = 16

Counts = dict[str, int]


def count_statuses(run: RunDir, plan: Plan, shards: Collection[int]) -> dict[int, Counts]:
    """Rows by status of each of `shards`, which are finished. Raises: InputError naming a part that is damaged."""
    cached, facts = _cached(run), _facts(run)
    names = {shard: part_name(shard, plan.shards) for shard in shards}
    unread = [shard for shard, name in names.items() if name not in cached or cached[name][0] != facts.get(name)]
    if unread:
        with ThreadPoolExecutor(_THREADS) as pool:
            fresh = pool.map(lambda shard: _read(run, run.part(shard, plan.shards)), unread)
            cached |= {
                names[shard]: [facts.get(names[shard]), counts] for shard, counts in zip(unread, fresh, strict=True)
            }
        with contextlib.suppress(InputError), publish(run.path / CACHE) as file:
            file.write(seal(json.dumps({name: entry for name, entry in cached.items() if name in facts}).encode()))
    return {shard: cached[name][1] for shard, name in names.items()}


def _read(run: RunDir, path: AnyPath) -> Counts:
    try:
        counts: Counts = json.loads(pq.read_metadata(parquet_source(path)).metadata[b"clipbatch.counts"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: clipbatch run --out {run.path} --repair does it again") from error
    return counts


def _facts(run: RunDir) -> dict[str, list[int]]:
    """Size in bytes, time in nanoseconds and file number of each part, taken before any footer is read: a part that
    is replaced in between is then read again the next time."""
    if isinstance(run.parts, StorePath):
        return {entry.base_name: [entry.size, entry.mtime_ns or 0] for entry in run.parts.entries()}
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(run.parts) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                facts = entry.stat()
                found[entry.name] = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
    return found


def _cached(run: RunDir) -> JsonObject:
    with contextlib.suppress(OSError, DamagedRecordError):
        cached, digest = unseal((run.path / CACHE).read_bytes())
        if digest is not None:
            return cached
    return {}
