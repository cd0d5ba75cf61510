"""`report.html`: a run to look at, in one file. Reads the run directory; writes nothing but the page."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from clipbatch.config.nesting import parse_json
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import unseal
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.storage.atomic import publish
from clipbatch.storage.paths import AnyPath, as_path
from clipbatch.tools.htmlreport import gather, page, thumbnails
from clipbatch.tools.htmlreport.page import sheets


def write(path: str | os.PathLike[str], *, out: str | None = None, examples: int = 6, zoom: bool = False) -> AnyPath:
    """Report on the run in `path` as far as it is; returns where the page is.

    out: the file to write or a url in a store, default `report.html` in the run directory. examples: confident ones
    for each label, and as many doubtful ones. zoom: axes of scores and margins end where their values do, in place of 0
    and 1.
    Raises: InputError where there is no run, no finished part, a damaged one, or `out` cannot be written.
    """
    run = RunDir(path)
    plan = run.plan()
    target = as_path(out, any_name=True) if out else run.path / "report.html"
    if isinstance(target, Path) and target.is_dir():
        raise InputError(f"--out {target} is a folder: name a file in it, such as {target / 'report.html'}")
    found = gather.gather(run, plan, examples=examples)
    made = sheets(list(found.sets.values()))
    rows = [example.row_id for sheet in made for label in sheet.labels for _, example in label.examples]
    evaluation = _evaluation(run)
    rows += [example["row_id"] for entry in evaluation.get("confusions", ()) for example in entry["examples"]]
    facts = page.Facts(
        run=run,
        plan=plan,
        report=_report_json(run),
        found=found,
        sheets=made,
        thumbnails=thumbnails.make(run, rows),
        now=time.time(),
        zoom=zoom,
        evaluation=evaluation,
    )
    content = page.render(facts)
    with publish(target) as file:
        file.write(content)
    return target


def _evaluation(run: RunDir) -> dict[str, Any]:
    """What `clipbatch evaluate` found of this run; nothing where it was not called, or the run is another one now."""
    with contextlib.suppress(OSError, ValueError):
        found = parse_json(run.frozen("evaluation.json") or b"{}")
        if isinstance(found, dict) and found.get("fingerprint") == run.fingerprint() and page.shows(found):
            return found
    return {}


def _report_json(run: RunDir) -> dict[str, Any]:
    """What the last invocation wrote; nothing where it never came to its end, or the file is damaged."""
    with contextlib.suppress(OSError, DamagedRecordError):
        return unseal(run.frozen("report.json") or b"{}")[0]
    return {}
