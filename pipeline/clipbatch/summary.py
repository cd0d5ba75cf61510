"""A run's report in words, for a terminal or a cron mail, and in numbers for Prometheus."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from clipbatch.atomic import writing_failed


def text(out: str, report: dict[str, Any]) -> str:
    """The end of a run in a few lines. out: the run directory."""
    if "this_run" not in report:
        return f"nothing is new or changed: {report['increment']['known']} images are known"
    done, here, out = report["rows_done"], report["this_run"], out.rstrip("/") or "/"
    passed = sum(report["passed_over"].values())
    part = report["part"]
    lines = []
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
    if "this_run" not in report:
        return f"{out}: nothing new, {report['increment']['known']} images known"
    here = report["this_run"]
    news = f" ({found['new']} new, {found['changed']} changed, {found['known']} known)" if found else ""
    speed = f"; {here['rows']} labelled in {here['seconds']:.0f} s" if here["rows"] else "; nothing was left to do"
    return f"{out}: {report['rows_done']} images{news}: {_statuses(report)}{speed}"


def write_metrics(target: Path, report: dict[str, Any]) -> None:
    """Write `target` in Prometheus' text format, whole or not at all, for the node exporter's textfile collector.

    Raises: InputError where it cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(f"clipbatch_{name}", text, registry=registry).set(value)

    here = report.get("this_run", {"rows": 0, "seconds": 0.0, "images_per_s": 0.0, "restarts": 0})
    by_status = Gauge("clipbatch_rows", "Rows of the run by status.", ["status"], registry=registry)
    for status, count in report["status"].items():
        by_status.labels(status).set(count)
    gauge("labelled_rows", "Rows that the last invocation labelled.", here["rows"])
    gauge("duration_seconds", "How long the last invocation took.", here["seconds"])
    gauge("images_per_second", "Rate of the last invocation, without loading the model.", here["images_per_s"])
    gauge("worker_restarts", "Workers that ended in the last invocation.", here["restarts"])
    if found := report.get("increment"):
        for name in ("new", "changed", "known"):
            gauge(f"increment_{name}_rows", f"Rows that were {name} when the input was listed.", found[name])
    stamp = Gauge("clipbatch_last_success_timestamp_seconds", "When an invocation last succeeded.", registry=registry)
    stamp.set_to_current_time()
    try:
        write_to_textfile(str(target), registry)
    except OSError as error:
        raise writing_failed(target, error) from error


def _statuses(report: dict[str, Any]) -> str:
    bad = sorted(((count, status) for status, count in report["status"].items() if status != "ok"), reverse=True)
    return ", ".join([f"{report['status'].get('ok', 0)} ok", *(f"{count} {status}" for count, status in bad)])
