"""A run's report in words, for a terminal or a cron mail, and in numbers for Prometheus.

What happened in a run, as `report.json`, and whether all that it has written is there in the end.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from clipbatch.config import hardware
from clipbatch.errors import DamagedError
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.replacement import REPAIR
from clipbatch.runs.warnings import score_warnings
from clipbatch.stages.flow import bottleneck
from clipbatch.storage.atomic import write_json, writing_failed
from clipbatch.storage.paths import list_names
from clipbatch.types import WorkerReport, counts_text
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import WorkDone


def text(out: str, report: dict[str, Any]) -> str:
    """The end of a run in a few lines. out: the run directory."""
    lines = [*_asides(report), *(f"warning: {text}" for text in report.get("warnings", ()))]
    if "this_run" not in report:
        return "\n".join([*lines, f"nothing is new or changed: {report['increment']['known']} images are known"])
    done, here, out = report["rows_done"], report["this_run"], out.rstrip("/") or "/"
    passed = sum(report["passed_over"].values())
    part = report["part"]
    if found := report.get("increment"):
        lines.append(f"{found['new']} new images, {found['changed']} changed, {found['known']} known: {out}")
    if part["planned"] < report["parts"]["planned"]:
        who = f"rank {part['rank']} of {part['world_size']}" if part["world_size"] > 1 else "this part"
        lines.append(
            f"{who}: {part['done']} of its {part['planned']} shards are done; of the whole run, "
            f"{report['parts']['done']} of {report['parts']['planned']}"
        )
    lines.append(f"{done} images: {counts_text(report['status'])}")
    if (mended := here["repaired"])["parts"]:
        lines.append(
            f"repaired: {mended['parts']} parts that were damaged or gone, now with {counts_text(mended['status'])}"
        )
    lines += [f"kept: {text}" for text in here["kept"]]
    if passed:
        kinds = ", ".join(f"{count} {ascii(suffix)[1:-1]}" for suffix, count in report["passed_over"].items())
        lines.append(f"passed over, or noted: {kinds}")
    if report["duplicates"]:
        lines.append(f"{report['duplicates']} rows name an image that an earlier row names")
    if here["rows"]:
        lines.append(
            f"{here['rows']} images in {here['seconds']:.1f} s ({here['load_s']:.1f} s of it starting and loading the "
            f"model), {here['images_per_s']:.0f} images/s, bound by {here['bottleneck']}"
        )
    else:
        lines.append("nothing was left to do")
    whole = report["parts"]["done"] == report["parts"]["planned"] or part["planned"] == report["parts"]["planned"]
    lines.append(f"scores: {out}/parts/*.parquet" + (f"   report: {out}/report.json" if whole else ""))
    if whole:
        lines.append(f"to look at it: clipbatch report {shlex.quote(out)}")
    return "\n".join(lines)


def line(out: str, report: dict[str, Any]) -> str:
    """The end of a run in one line, fit for a mail."""
    found = report.get("increment")
    also = "".join(f"; {aside}" for aside in _asides(report))
    if "this_run" not in report:
        return f"{out}: nothing new, {report['increment']['known']} images known{also}"
    here = report["this_run"]
    news = f" ({found['new']} new, {found['changed']} changed, {found['known']} known)" if found else ""
    speed = f"; {here['rows']} labelled in {here['seconds']:.0f} s" if here["rows"] else "; nothing was left to do"
    return f"{out}: {report['rows_done']} images{news}: {counts_text(report['status'])}{speed}{also}"


def write_metrics(target: Path, report: dict[str, Any]) -> None:
    """Write `target` in Prometheus' text format, whole or not at all, for the node exporter's textfile collector.

    Raises: InputError where it cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(f"clipbatch_{name}", text, registry=registry).set(value)

    reports = [*report.get("finished", ()), *([report] if "this_run" in report else ())]
    total: Counter[str] = Counter()
    for made in reports:
        total.update({name: made["this_run"][name] for name in ("rows", "seconds", "restarts")})
    by_status = Gauge("clipbatch_rows", "Rows of the run by status.", ["status"], registry=registry)
    for made in reports:
        for status, count in made["status"].items():
            by_status.labels(status).inc(count)
    rate = reports[-1]["this_run"]["images_per_s"] if reports else 0.0
    gauge("labelled_rows", "Rows that the last invocation labelled.", total["rows"])
    gauge("duration_seconds", "How long the last invocation took.", total["seconds"])
    gauge("images_per_second", "Rate of the last invocation, without loading the model.", rate)
    gauge("worker_restarts", "Workers that ended in the last invocation.", total["restarts"])
    if found := report.get("increment"):
        for name in ("new", "changed", "known"):
            gauge(f"increment_{name}_rows", f"Rows that were {name} when the input was listed.", found[name])
    stamp = Gauge("clipbatch_last_success_timestamp_seconds", "When an invocation last succeeded.", registry=registry)
    stamp.set_to_current_time()
    try:
        write_to_textfile(str(target), registry)
    except OSError as error:
        raise writing_failed(target, error) from error


def _asides(report: dict[str, Any]) -> list[str]:
    """What an increment's report has to say beside the increment itself."""
    finished = (
        f"finished first: {made['folder']}, {made['rows_done']} images: {counts_text(made['status'])}"
        for made in report.get("finished", ())
    )
    return [*finished, *report.get("notes", ())]


_MAX_NAMED = 20


def make(
    run: RunDir,
    plan: Plan,
    done: WorkDone,
    elapsed_s: float,
    rank: Rank,
    shards: list[int],
    damaged: Collection[int] = (),
) -> dict[str, Any]:
    """The report on `shards`, those that this invocation answers for. elapsed_s: with planning and loading. damaged:
    shards whose part was damaged before; unless it has been replaced, it does not count as done.

    Published as `report.json` where they are all of the run's; also, for all of them, where the run is complete.
    """
    mended = {shard: done.counts[shard] for shard in damaged if shard in done.counts and shard not in done.kept}
    finished = run.done(plan) - (set(damaged) - mended.keys())
    if len(shards) < plan.shards and len(finished) == plan.shards:
        make(run, plan, done, elapsed_s, rank, list(range(plan.shards)), damaged)
    mine = [shard for shard in shards if shard in finished]
    totals = _added(count_statuses(run, plan, mine).values())
    rows = sum(sum(counts.values()) for counts in done.counts.values())
    stages = _sum_stages(done.stages)
    report = {
        "rows": plan.rows,
        "rows_done": sum(totals.values()),
        "status": dict(sorted(totals.items())),
        "parts": {"done": len(finished), "planned": plan.shards},
        "part": {"rank": rank.number, "world_size": rank.world, "done": len(mine), "planned": len(shards)},
        "passed_over": plan.passed_over,
        "duplicates": plan.duplicates,
        "warnings": score_warnings(run, plan, mine),
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
            "repaired": {"parts": len(mended), "status": dict(sorted(_added(mended.values()).items()))},
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
    if len(shards) == plan.shards:
        write_json(run.path / "report.json", report)
    return report


def check_nothing_vanished(run: RunDir, plan: Plan, shards: Collection[int]) -> None:
    """See whether the files of the run are there, and the parts of `shards`, all of which are done.

    Raises: DamagedError naming what is gone, and the remedy.
    """
    manifest, top, done = list_names(run.manifest), list_names(run.path), run.done(plan)
    frozen = [run.manifest / name for name in plan.manifest_sha256 if name not in manifest]
    frozen += [file for file in (run.plan_file, run.model_file) if file.name not in top]
    parts = [run.part(shard, plan.shards) for shard in shards if shard not in done]
    remedies = ["put back what is no part, as from a backup: nothing can make it anew"] if frozen else []
    remedies += ["the same command does the parts again"] if parts else []
    if gone := [*map(str, frozen), *map(str, parts)]:
        what = f"{len(gone)} files of this run are gone, which somebody has deleted:"
        raise DamagedError(_lines(what, gone, "; then ".join(remedies)))


def check_mended(run: RunDir, done: WorkDone, damaged: Collection[int]) -> None:
    """Raises: DamagedError where some of the `damaged` parts have been kept, naming them, and the remedy."""
    if kept := [done.kept[shard] for shard in sorted(done.kept) if shard in damaged]:
        what = f"{len(kept)} of {len(damaged)} damaged parts stay as they are, since new ones have fewer ok rows:"
        again = REPAIR.format(run.path)
        raise DamagedError(_lines(what, kept, f"put the images back, then {again}; or take the new rows with --force"))


def _lines(what: str, named: list[str], remedy: str) -> str:
    more = [f"and {len(named) - _MAX_NAMED} more"] if len(named) > _MAX_NAMED else []
    return "\n".join([what, *named[:_MAX_NAMED], *more, f"remedy: {remedy}"])


def _added(counts: Collection[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return total


def _sum_stages(reports: list[WorkerReport]) -> dict[str, dict[str, float]]:
    """The workers' stage times added up; `load` averaged."""
    total: dict[str, dict[str, float]] = {}
    for report in reports:
        for stage, times in report.times.items():
            into = total.setdefault(stage, dict.fromkeys(times, 0.0))
            for name, value in times.items():
                into[name] = round(into[name] + (value / len(reports) if name == "load" else value), 3)
    return total
