"""Makes the report of a run, `report.json`, and checks at the end of a run that all its files still exist."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from clipbatch.config import SettingValues, hardware
from clipbatch.errors import DamagedError
from clipbatch.rundir.counts import count_all
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import ModelFacts, unseal
from clipbatch.rundir.replacement import REPAIR
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.runs.warnings import caption_warnings, score_warnings
from clipbatch.stages.flow import bottleneck
from clipbatch.storage.atomic import write_json
from clipbatch.storage.paths import list_names
from clipbatch.types import WorkerReport
from clipbatch.workers.progress import MIN_RATE_S
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import WorkDone


class Counted(TypedDict):
    """How many shards there are, and how many of them have a part."""

    done: int
    planned: int


class OwnPart(Counted):
    """The shards that this process is responsible for."""

    rank: int
    world_size: int


class Repaired(TypedDict):
    """How many damaged parts were done again, and how many of their rows have which status now."""

    parts: int
    status: dict[str, int]


class Quarantined(TypedDict):
    """A row that killed a worker."""

    row_id: int
    status: str
    error: str


class Waits(TypedDict):
    """How a store or host made readers wait. waited_s: of the worker that waited the longest."""

    tries_again: float
    waited_s: float


class _Invocation(TypedDict):
    """The work of one invocation. The keys give units; `images_per_s` leaves out the time of loading."""

    rows: int
    seconds: float
    load_s: float
    images_per_s: float
    bottleneck: str
    stages: dict[str, dict[str, float]]
    peak_memory_mib: int
    workers: list[dict[str, str | float]]
    restarts: int
    repaired: Repaired
    kept: list[str]
    quarantined: list[Quarantined]


class Invocation(_Invocation, total=False):
    """With `ceiling`, what most workers' images waited for (`stages.ceilings`), if any worker has done something; with
    `waits`, by store or host, only if one made the run wait; with `helped`, the number of shards of other ranks that it
    did, only if it did some."""

    ceiling: str
    waits: dict[str, Waits]
    helped: int


class Increment(TypedDict):
    """How many rows of a listing were new, changed or known. folder: None if no row was new or changed."""

    folder: str | None
    new: int
    changed: int
    known: int


class Report(TypedDict, total=False):
    """The contents of `report.json`, and the output of --json. Only --incremental adds the last four keys; if nothing
    is new, the report has only these keys, `status` and `rows_done`."""

    rows: int
    rows_done: int
    status: dict[str, int]
    parts: Counted
    part: OwnPart
    passed_over: dict[str, int]
    duplicates: int | None
    # Of the ok images: how many were compared with their caption, and how many were not, by reason. Only with captions.
    captions: dict[str, int]
    warnings: list[str]
    this_run: Invocation
    settings: SettingValues
    model: ModelFacts | None
    fingerprint: str | None
    versions: dict[str, str]
    hardware: dict[str, str | int]
    increment: Increment
    finished: list[Report]
    folder: str
    notes: list[str]


# How many files an error names.
_MAX_NAMED = 20


def make(
    run: RunDir,
    plan: Plan,
    done: WorkDone,
    elapsed_s: float,
    rank: Rank,
    shards: list[int],
    damaged: Collection[int] = (),
) -> Report:
    """The report on `shards`, the ones that this invocation is responsible for. elapsed_s: including planning and
    loading. damaged: the shards whose part was damaged before; such a shard is not done unless its part was replaced.

    If `shards` are all shards of the run, the report is published as `report.json`. If this invocation completes the
    run, a report on all shards is published too; where another rank did the last shard, that rank publishes it. One
    that did nothing publishes it only where the whole run has no report yet.
    """
    repaired = {shard: done.counts[shard] for shard in damaged if shard in done.counts and shard not in done.kept}
    finished = run.done(plan) - (set(damaged) - repaired.keys())
    completes = len(shards) < plan.shards and len(finished) == plan.shards and not done.outrun
    if completes and (done.counts or not _is_reported(run, plan)):
        make(run, plan, done, elapsed_s, rank, list(range(plan.shards)), damaged)
    mine = [shard for shard in shards if shard in finished]
    counted, compared = count_all(run, plan, mine)
    totals = _sum(counted.values())
    rows = sum(sum(counts.values()) for counts in done.counts.values())
    stages = _sum_stages(done.stages)
    report: Report = {
        "rows": plan.rows,
        "rows_done": sum(totals.values()),
        "status": dict(sorted(totals.items())),
        "parts": {"done": len(finished), "planned": plan.shards},
        "part": {"rank": rank.number, "world_size": rank.world, "done": len(mine), "planned": len(shards)},
        "passed_over": plan.passed_over,
        "duplicates": plan.duplicates,
        "warnings": [*score_warnings(run, plan, mine), *caption_warnings(plan, compared)],
        "this_run": {
            "rows": rows,
            "seconds": round(elapsed_s, 3),
            "load_s": done.load_s,
            "images_per_s": round(rows / max(elapsed_s - done.load_s, 1e-9), 2) if rows else 0.0,
            "bottleneck": bottleneck(stages),
            "stages": stages,
            "peak_memory_mib": sum(report.peak_mib for report in done.stages),
            "workers": [{"peak_mib": report.peak_mib, **report.facts} for report in done.stages],
            "restarts": done.restarts,
            "repaired": {"parts": len(repaired), "status": dict(sorted(_sum(repaired.values()).items()))},
            "kept": [done.kept[shard] for shard in sorted(done.kept)],
            "quarantined": [
                {"row_id": row, "status": reject.status, "error": reject.error}
                for row, reject in sorted(done.quarantined.items())
            ],
        },
        "settings": plan.settings,
        "model": run.model_facts(),
        "fingerprint": run.fingerprint(),
        "versions": plan.versions,
        "hardware": hardware.describe(),
    }
    if compared is not None:
        report["captions"] = dict(sorted(compared.items()))
    if reached := Counter(str(facts["ceiling"]) for each in done.stages if "ceiling" in (facts := each.facts)):
        report["this_run"]["ceiling"] = reached.most_common(1)[0][0]
    if waits := _waits(done.stages):
        report["this_run"]["waits"] = waits
    if helped := len(done.counts.keys() - set(shards)):
        report["this_run"]["helped"] = helped
    if len(shards) == plan.shards:
        write_json(run.path / "report.json", report)
    return report


def _is_reported(run: RunDir, plan: Plan) -> bool:
    """Whether there is a `report.json`, and it is on all shards."""
    with contextlib.suppress(OSError, DamagedRecordError):
        report, _ = unseal(run.frozen("report.json") or b"{}")
        return report.get("parts") == {"done": plan.shards, "planned": plan.shards}
    return False


def has_pace(this_run: Mapping[str, Any]) -> bool:
    """Whether an invocation has worked for long enough to have a rate and a bottleneck. this_run: as in a `Report`."""
    return bool(this_run["rows"] and this_run["seconds"] - this_run["load_s"] >= MIN_RATE_S)


def check_nothing_vanished(run: RunDir, plan: Plan, shards: Collection[int]) -> None:
    """Check that the files of the run and the parts of `shards`, all of which are done, still exist.

    Raises: DamagedError with the missing files and the remedy.
    """
    manifest, top, done = list_names(run.manifest), list_names(run.path), run.done(plan)
    frozen = [run.manifest / name for name in plan.manifest_sha256 if name not in manifest]
    frozen += [file for file in (run.plan_file, run.model_file) if file.name not in top]
    parts = [run.part(shard, plan.shards) for shard in shards if shard not in done]
    remedies = ["put back the files that are not parts, as from a backup: they cannot be made again"] if frozen else []
    remedies += ["the same command makes the parts again"] if parts else []
    if missing := [*map(str, frozen), *map(str, parts)]:
        summary = f"somebody has deleted {len(missing)} files of this run:"
        raise DamagedError(_list_files(summary, missing, "; then ".join(remedies)))


def check_repaired(run: RunDir, done: WorkDone, damaged: Collection[int]) -> None:
    """Raises: DamagedError if some of the `damaged` parts were kept, with their names and the remedy."""
    if kept := [done.kept[shard] for shard in sorted(done.kept) if shard in damaged]:
        summary = f"{len(kept)} of {len(damaged)} damaged parts stay as they are, since new ones have fewer ok rows:"
        repair = REPAIR.format(run.path)
        remedy = f"put the images back, then {repair}; or take the new rows with --force"
        raise DamagedError(_list_files(summary, kept, remedy))


def _list_files(summary: str, files: list[str], remedy: str) -> str:
    more = [f"and {len(files) - _MAX_NAMED} more"] if len(files) > _MAX_NAMED else []
    return "\n".join([summary, *files[:_MAX_NAMED], *more, f"remedy: {remedy}"])


def _sum(counts: Collection[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _waits(reports: list[WorkerReport]) -> dict[str, Waits]:
    """The waits of all workers by host, the longest first."""
    waits: dict[str, Waits] = {}
    for report in reports:
        for host, its in report.waits.items():
            of_host = waits.setdefault(host, {"tries_again": 0, "waited_s": 0.0})
            of_host["tries_again"] += its["tries_again"]
            of_host["waited_s"] = max(of_host["waited_s"], its["waited_s"])
    longest = sorted(waits, key=lambda host: -waits[host]["waited_s"])[:_MAX_NAMED]
    return {host: waits[host] for host in longest}


def _sum_stages(reports: list[WorkerReport]) -> dict[str, dict[str, float]]:
    """The workers' times by stage: the average of `load`, and the sums of all others."""
    total: dict[str, dict[str, float]] = {}
    for report in reports:
        for stage, times in report.times.items():
            into = total.setdefault(stage, dict.fromkeys(times, 0.0))
            for name, value in times.items():
                into[name] = round(into[name] + (value / len(reports) if name == "load" else value), 3)
    return total
