"""A run's report in words, for a terminal or a cron mail, and in numbers for Prometheus.

What happened in a run, as `report.json`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from clipbatch.config import hardware
from clipbatch.rundir.counts import tally
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.stages.flow import bottleneck
from clipbatch.storage.atomic import write_json, writing_failed
from clipbatch.workers.ranks import Rank
from clipbatch.workers.supervisor import WorkDone


def text(out: str, report: dict[str, Any]) -> str:
    """The end of a run in a few lines. out: the run directory."""
    lines = _asides(report)
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
    lines.append(f"{done} images: {_statuses(report)}")
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
    return f"{out}: {report['rows_done']} images{news}: {_statuses(report)}{speed}{also}"


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
        f"finished first: {made['folder']}, {made['rows_done']} images: {_statuses(made)}"
        for made in report.get("finished", ())
    )
    return [*finished, *report.get("notes", ())]


def _statuses(report: dict[str, Any]) -> str:
    bad = sorted(((count, status) for status, count in report["status"].items() if status != "ok"), reverse=True)
    return ", ".join([f"{report['status'].get('ok', 0)} ok", *(f"{count} {status}" for count, status in bad)])


def make(run: RunDir, plan: Plan, done: WorkDone, elapsed_s: float, rank: Rank, shards: list[int]) -> dict[str, Any]:
    """The report on `shards`, those that this invocation answers for. elapsed_s: with planning and loading.

    Published as `report.json` where they are all of the run's; also, for all of them, where the run is complete.
    """
    finished = run.done(plan)
    if len(shards) < plan.shards and len(finished) == plan.shards:
        make(run, plan, done, elapsed_s, rank, list(range(plan.shards)))
    mine = [shard for shard in shards if shard in finished]
    totals: Counter[str] = Counter()
    for counts in tally(run, plan, mine).values():
        totals.update(counts)
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
        "this_run": {
            "rows": rows,
            "seconds": round(elapsed_s, 3),
            "load_s": done.load_s,
            "images_per_s": round(rows / max(elapsed_s - done.load_s, 1e-9), 2) if rows else 0.0,
            "bottleneck": bottleneck(stages),
            "stages": stages,
            "peak_memory_mib": sum(entry["peak_mib"] for entry in done.stages),
            "workers": [{k: v for k, v in entry.items() if k != "times"} for entry in done.stages],
            "restarts": done.restarts,
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


def _sum_stages(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The workers' stage times added up; `load` averaged."""
    total: dict[str, dict[str, float]] = {}
    for entry in entries:
        for stage, times in entry["times"].items():
            into = total.setdefault(stage, dict.fromkeys(times, 0.0))
            for name, value in times.items():
                into[name] = round(into[name] + (value / len(entries) if name == "load" else value), 3)
    return total
