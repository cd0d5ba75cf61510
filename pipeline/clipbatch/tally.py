"""How many rows of which status finished parts have, as their footers say; each footer is read once.

What was read is kept in `.counts.json`, with the size, time and file number that the part had then: a part that was
replaced differs in one of them and is read again. The file is a cache. Without it everything is read, and of many
writers the last one's stays.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.atomic import publish
from clipbatch.errors import InputError
from clipbatch.places import Place, StorePath, parquet_source
from clipbatch.rundir import Plan, RunDir

CACHE = ".counts.json"
_THREADS = 16
"""Footers read at the same time, for file systems that are slow to answer."""

Counts = dict[str, int]


def tally(run: RunDir, plan: Plan, shards: Collection[int]) -> dict[int, Counts]:
    """Rows by status of each of `shards`, which are finished. Raises: InputError naming a part that is damaged."""
    cached, facts = _cached(run), _facts(run)
    found: dict[int, Counts] = {}
    unread: list[tuple[int, Place]] = []
    for shard in shards:
        path = run.part(shard, plan.shards)
        entry = cached.get(path.name)
        if entry and entry[0] == facts.get(path.name):
            found[shard] = entry[1]
        else:
            unread.append((shard, path))
    if unread:
        with ThreadPoolExecutor(_THREADS) as pool:
            found |= zip(
                (shard for shard, _ in unread), pool.map(_read, [(run, path) for _, path in unread]), strict=True
            )
        cached |= {path.name: [facts[path.name], found[shard]] for shard, path in unread if path.name in facts}
        with contextlib.suppress(InputError), publish(run.path / CACHE) as file:
            file.write(json.dumps({name: entry for name, entry in cached.items() if name in facts}).encode())
    return found


def _read(where: tuple[RunDir, Place]) -> Counts:
    run, path = where
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


def _cached(run: RunDir) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        cached = json.loads((run.path / CACHE).read_bytes())
        if isinstance(cached, dict):
            return cached
    return {}
