"""Puts the report of a run into words, for a terminal or a cron mail."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from clipbatch.rundir.captions import COMPARED
from clipbatch.runs.report import Report, has_pace
from clipbatch.types import counts_text
from clipbatch.workers import words


def text(out: str, report: Report) -> str:
    """The report in a few lines, for the end of a run. out: the run directory."""
    lines = [*_asides(report), *(f"warning: {text}" for text in report.get("warnings", ()))]
    if many_bad := words.bad_share(report["status"]):
        lines.insert(0, many_bad)
    if "this_run" not in report:
        return "\n".join([*lines, f"nothing is new or changed: {report['increment']['known']} images are known"])
    done, this_run, out = report["rows_done"], report["this_run"], out.rstrip("/") or "/"
    passed = sum(report["passed_over"].values())
    part = report["part"]
    if increment := report.get("increment"):
        new, changed, known = increment["new"], increment["changed"], increment["known"]
        lines.append(f"{new} new images, {changed} changed, {known} known: {out}")
    if part["planned"] < report["parts"]["planned"]:
        who = f"rank {part['rank']} of {part['world_size']}" if part["world_size"] > 1 else "this part"
        helped = f", and it did {this_run['helped']} of other ranks" if "helped" in this_run else ""
        lines.append(
            f"{who}: {part['done']} of its {part['planned']} parts are done{helped}; of the whole run, "
            f"{report['parts']['done']} of {report['parts']['planned']}"
        )
    lines.append(f"{done} images: {counts_text(report['status'])}")
    if (captions := report.get("captions")) is not None:
        lines.append(f"captions: {captions_text(captions)}")
    if (repaired := this_run["repaired"])["parts"]:
        lines.append(
            f"repaired: {repaired['parts']} parts that were damaged or missing, now with "
            f"{counts_text(repaired['status'])}"
        )
    lines += [f"kept: {text}" for text in this_run["kept"]]
    if passed:
        kinds = ", ".join(f"{count} {ascii(suffix)[1:-1]}" for suffix, count in report["passed_over"].items())
        lines.append(f"passed over, or noted: {kinds}")
    if report["duplicates"]:
        lines.append(f"{report['duplicates']} rows name an image that an earlier row names")
    if this_run["rows"]:
        pace = ""
        if has_pace(this_run):
            pace = f", {words.rate(this_run['images_per_s'])} images/s, bound by {this_run['bottleneck']}"
            reached = this_run.get("ceiling", "")
            pace += f" ({reached})" if reached not in ("", this_run["bottleneck"]) else ""
        lines.append(
            f"{this_run['rows']} images in {this_run['seconds']:.1f} s ({this_run['load_s']:.1f} s of it starting and "
            f"loading the model){pace}"
        )
    else:
        lines.append("nothing was left to do")
    for host, waits in this_run.get("waits", {}).items():
        lines.append(f"waited {waits['waited_s']:.1f} s for {host}, and tried {waits['tries_again']:.0f} reads again")
    whole = report["parts"]["done"] == report["parts"]["planned"] or part["planned"] == report["parts"]["planned"]
    what = "scores" if report["settings"]["labels"] else "results"
    lines.append(f"{what}: {out}/parts/*.parquet" + (f"   report: {out}/report.json" if whole else ""))
    if whole:
        lines.append(f"to look at it: clipbatch report {shlex.quote(out)}")
    return "\n".join(lines)


def captions_text(counts: Mapping[str, int]) -> str:
    """Counts of captions as text: `980 compared, 20 not: 12 empty, 8 null`."""
    reasons = sorted(((count, reason) for reason, count in counts.items() if reason != COMPARED), reverse=True)
    compared = f"{counts.get(COMPARED, 0)} compared"
    if not reasons:
        return compared
    named = ", ".join(f"{count} {reason}" for count, reason in reasons)
    return f"{compared}, {sum(count for count, _ in reasons)} not: {named}"


def line(out: str, report: Report) -> str:
    """The report in one line, for a mail."""
    increment = report.get("increment")
    remarks = "".join(f"; {aside}" for aside in _asides(report))
    if "this_run" not in report:
        return f"{out}: nothing new, {report['increment']['known']} images known{remarks}"
    this_run = report["this_run"]
    news = ""
    if increment:
        news = f" ({increment['new']} new, {increment['changed']} changed, {increment['known']} known)"
    speed = "; nothing was left to do"
    if this_run["rows"]:
        speed = f"; {this_run['rows']} labelled in {this_run['seconds']:.0f} s"
    many_bad = f"{share}; " if (share := words.bad_share(report["status"])) else ""
    return f"{out}: {many_bad}{report['rows_done']} images{news}: {counts_text(report['status'])}{speed}{remarks}"


def _asides(report: Report) -> list[str]:
    """The remarks in an increment's report: which increments were finished, and its notes."""
    finished = (
        f"finished first: {each['folder']}, {each['rows_done']} images: {counts_text(each['status'])}"
        for each in report.get("finished", ())
    )
    return [*finished, *report.get("notes", ())]
