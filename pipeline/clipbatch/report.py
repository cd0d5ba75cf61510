"""What happened in a run, as `report.json`."""

from __future__ import annotations

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


def _sum_stages(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The workers' stage times added up; `load` averaged."""
    total: dict[str, dict[str, float]] = {}
    for entry in entries:
        for stage, times in entry["times"].items():
            into = total.setdefault(stage, dict.fromkeys(times, 0.0))
            for name, value in times.items():
                into[name] = round(into[name] + (value / len(entries) if name == "load" else value), 3)
    return total
