"""What happened in a run: `report.json` for machines, a few lines for people."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from clipbatch import hardware
from clipbatch.atomic import write_json
from clipbatch.flow import bottleneck
from clipbatch.launch import WorkDone
from clipbatch.ranks import Rank
from clipbatch.rundir import Plan, RunDir
from clipbatch.tally import tally


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


def summary(run: RunDir, report: dict[str, Any]) -> str:
    """The end of a run in a few lines."""
    done, here = report["rows_done"], report["this_run"]
    bad = {status: count for status, count in report["status"].items() if status != "ok"}
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(bad.items(), key=lambda kv: -kv[1]))
    passed = sum(report["passed_over"].values())
    part = report["part"]
    lines = []
    if part["planned"] < report["parts"]["planned"]:
        who = f"rank {part['rank']} of {part['world_size']}" if part["world_size"] > 1 else "this part"
        lines.append(
            f"{who}: {part['done']} of its {part['planned']} shards are done; of the whole run, "
            f"{report['parts']['done']} of {report['parts']['planned']}"
        )
    lines.append(f"{done} images: {report['status'].get('ok', 0)} ok" + (f", {statuses}" if bad else ""))
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
    lines.append(f"scores: {run.parts}/*.parquet" + (f"   report: {run.path / 'report.json'}" if whole else ""))
    if whole:
        lines.append(f"to look at it: clipbatch report {shlex.quote(str(run.path))}")
    return "\n".join(lines)


def _sum_stages(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The workers' stage times added up; `load` averaged."""
    total: dict[str, dict[str, float]] = {}
    for entry in entries:
        for stage, times in entry["times"].items():
            into = total.setdefault(stage, dict.fromkeys(times, 0.0))
            for name, value in times.items():
                into[name] = round(into[name] + (value / len(entries) if name == "load" else value), 3)
    return total
