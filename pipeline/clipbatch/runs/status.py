"""Says how far a run or a dataset of increments is, who is at work on it, and what to do next.

What is done is what is in `parts/`, which is listed once. Bad rows are counted from the counts that we have kept, and
from as many further footers as there is time for, so that a run of 100,000 parts is answered in seconds. Who is at work
comes from `.activity/` (`rundir.activity`), and is a hint.
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import TypedDict

from clipbatch.rundir import activity
from clipbatch.rundir.counts import Counts, count_some, listing
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir, part_name
from clipbatch.runs import causes, increments, pace
from clipbatch.storage.paths import StorePath

# For how long footers are read, on a disk and in a store.
FOOTERS_S, FOOTERS_IN_STORE_S = 0.8, 3.0


class AtWork(TypedDict):
    """A process that has said that it works on the run, and what it has done since it began."""

    host: str
    pid: int
    rank: int
    world_size: int
    devices: list[str]
    # UTC, ISO 8601.
    since: str
    heard_s_ago: float
    rows: int
    bad: dict[str, int]
    images_per_s: float | None
    bottleneck: str | None


class IncrementStatus(TypedDict):
    """How far an increment is."""

    folder: str
    rows: int
    rows_done: int
    complete: bool


class _Status(TypedDict):
    """How far a run or a dataset is. Of a dataset, numbers are sums over its increments unless a comment says else."""

    rows: int
    rows_done: int
    parts: int
    parts_done: int
    parts_open: int
    complete: bool
    # Of the last increment.
    model: str
    fingerprint: str
    # Rows by status in the parts that were counted, and how many parts these are.
    status: dict[str, int]
    parts_counted: int
    # Open shards of the first unfinished increment over which workers have died, as those at work say.
    parts_failed: list[int]
    # Of those at work, as far as they know it.
    images_per_s: float | None
    # Of the last increment, while somebody worked.
    images_per_s_overall: float | None
    # At the rate of those at work, or over all; None if nobody is at work.
    left_s: float | None
    # UTC, ISO 8601.
    last_activity: str | None
    at_work: list[AtWork]
    next_step: str


class Status(_Status, total=False):
    """With `increments`, the oldest first, for a dataset only."""

    increments: list[IncrementStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one run directory shows."""

    run: RunDir
    plan: Plan
    done: Set[int]
    rows_done: int
    # By shard.
    counts: dict[int, Counts]
    entries: list[activity.Entry]
    # For each part its time (unix time, seconds) and its number of rows.
    published: list[tuple[float, int]]

    @property
    def complete(self) -> bool:
        return len(self.done) == self.plan.shards


def status(place: str) -> Status:
    """How far the run or dataset in `place` is. Raises: InputError if there is none."""
    paths = increments.runs_in(place)
    end = time.monotonic() + (FOOTERS_IN_STORE_S if isinstance(RunDir(place).path, StorePath) else FOOTERS_S)
    looks = [_look(RunDir(path), end - time.monotonic()) for path in paths]
    last, unfinished = looks[-1], [look for look in looks if not look.complete]
    entries = [entry for look in looks for entry in look.entries]
    rates = [entry.images_per_s for entry in entries if entry.images_per_s is not None]
    rate, overall = sum(rates) if rates else None, pace.overall(last.published)
    expected = overall if rate is None else rate
    rows, rows_done = sum(look.plan.rows for look in looks), sum(look.rows_done for look in looks)
    left = max(0, rows - rows_done - sum(entry.rows_open for entry in entries))
    active = [*(at for look in looks for at, _ in look.published), *(entry.time for entry in entries)]
    statuses = _statuses(looks)
    result: Status = {
        "rows": rows,
        "rows_done": rows_done,
        "parts": sum(look.plan.shards for look in looks),
        "parts_done": sum(len(look.done) for look in looks),
        "parts_open": sum(look.plan.shards - len(look.done) for look in looks),
        "complete": not unfinished,
        "model": last.plan.settings["model"],
        "fingerprint": last.run.fingerprint() or "(no worker has loaded the model yet)",
        "status": dict(sorted(statuses.items())),
        "parts_counted": sum(len(look.counts) for look in looks),
        "parts_failed": _failed(unfinished[0]) if unfinished else [],
        "images_per_s": None if rate is None else round(rate, 2),
        "images_per_s_overall": None if overall is None else round(overall, 2),
        "left_s": round(left / expected, 1) if expected and entries and unfinished else None,
        "last_activity": _iso(max(active)) if active else None,
        "at_work": [_at_work(entry) for entry in entries],
        "next_step": _next_step(place, looks),
    }
    if paths != [place]:
        result["increments"] = [_increment(look) for look in looks]
    return result


def _look(run: RunDir, footers_s: float) -> _Look:
    """footers_s: for how long footers may be read."""
    plan, listed = run.plan(), listing(run)
    shards = plan.shards
    names = ((shard, part_name(shard, shards)) for shard in range(shards))
    times = {shard: listed[name][1] / 1e9 for shard, name in names if name in listed}
    rows = {shard: len(plan.shard_rows(shard)) for shard in times}
    return _Look(
        run=run,
        plan=plan,
        done=times.keys(),
        rows_done=sum(rows.values()),
        counts=count_some(run, plan, times.keys(), listed, footers_s),
        entries=activity.read(run, plan.fingerprint),
        published=[(at, rows[shard]) for shard, at in times.items()],
    )


def _statuses(looks: list[_Look]) -> Counter[str]:
    total: Counter[str] = Counter()
    for look in looks:
        for counts in look.counts.values():
            total.update(counts)
    return total


def _failed(look: _Look) -> list[int]:
    """The open shards over which workers of those at work have died."""
    numbers = {int(shard) for entry in look.entries for shard in entry.deaths if shard.isdecimal()}
    return sorted(number for number in numbers if number < look.plan.shards and number not in look.done)


def _at_work(entry: activity.Entry) -> AtWork:
    return {
        "host": entry.host,
        "pid": entry.pid,
        "rank": entry.rank,
        "world_size": entry.world_size,
        "devices": entry.devices,
        "since": _iso(entry.since),
        "heard_s_ago": round(max(0.0, time.time() - entry.time), 1),
        "rows": entry.rows,
        "bad": entry.bad,
        "images_per_s": entry.images_per_s,
        "bottleneck": entry.bottleneck,
    }


def _increment(look: _Look) -> IncrementStatus:
    folder, rows = str(look.run.path), look.plan.rows
    return {"folder": folder, "rows": rows, "rows_done": look.rows_done, "complete": look.complete}


def _next_step(place: str, looks: list[_Look]) -> str:
    name = shlex.quote(place)
    if any(look.entries for look in looks):
        return f"wait for who is at work: clipbatch status {name} --watch"
    for look in looks:
        if not look.complete:
            return f"clipbatch run --out {shlex.quote(str(look.run.path))}"
    last, nothing = looks[-1], not _statuses(looks).get("ok")
    if nothing and all(len(look.counts) == look.plan.shards for look in looks):
        cause = causes.likely_cause(last.run, last.plan)
        because = f", likely because {cause}" if cause else ""
        return f"nothing could be labelled{because}: clipbatch report {name} shows the errors"
    return f"clipbatch report {name}"


def _iso(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
