"""The report page of a run or dataset, `report.html`: a single file to look at it with. Writes nothing but the page."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from clipbatch.config.nesting import JsonObject, parse_json
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import unseal
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.runs.causes import likely_cause
from clipbatch.runs.increments import runs_in
from clipbatch.storage.atomic import publish
from clipbatch.storage.paths import AnyPath, as_path
from clipbatch.tools.htmlreport import gather, page, thumbnails
from clipbatch.tools.htmlreport.evaluation import shows
from clipbatch.tools.htmlreport.sheets import sheets
from clipbatch.tools.htmlreport.sources import Source, by_source, sources
from clipbatch.tools.htmlreport.thumbnails import Thumbnail


def write(path: str | os.PathLike[str], *, out: str | None = None, examples: int = 6, zoom: bool = False) -> AnyPath:
    """Write the page for the run or the dataset of increments in `path`, as far as it is done. Returns the path of the
    page.

    out: the file to write, or a URL in a store; None: `report.html` in `path`. examples: how many confident
    images to show for each label, and how many doubtful ones. zoom: draw scores and margins over their own range, not
    from 0 to 1.
    Raises: InputError if there is no run or no finished part, if a part is damaged, or `out` cannot be written.
    """
    place = RunDir(path).path
    found = sources(runs_in(str(place)))
    run, plan = found[-1].run, found[-1].plan
    target = as_path(out, any_name=True) if out else place / "report.html"
    if isinstance(target, Path) and target.is_dir():
        raise InputError(f"--out {target} is a folder: name a file in it, such as {target / 'report.html'}")
    gathered = gather.gather(found, examples=examples)
    example_sheets = sheets(list(gathered.sets.values()))
    rows = [example.row_id for sheet in example_sheets for label in sheet.labels for _, example in label.examples]
    evaluation = _evaluation(run) if len(found) == 1 else {}
    rows += [example["row_id"] for entry in evaluation.get("confusions", ()) for example in entry["examples"]]
    facts = page.Facts(
        place=place,
        sources=found,
        report=_report_json(run),
        gathered=gathered,
        sheets=example_sheets,
        thumbnails=_thumbnails(found, rows),
        now=time.time(),
        zoom=zoom,
        evaluation=evaluation,
        cause="" if gathered.statuses["ok"] else likely_cause(run, plan),
    )
    content = page.render(facts)
    with publish(target) as file:
        file.write(content)
    return target


def _thumbnails(found: list[Source], rows: list[int]) -> dict[int, Thumbnail]:
    """By the number of the row on the page."""
    result, end = dict[int, Thumbnail](), time.monotonic() + thumbnails.ALL_S
    for source, own in by_source(found, rows):
        made = thumbnails.make(source.run, own, end - time.monotonic() if len(found) > 1 else thumbnails.ALL_S)
        result |= {source.first + row: thumbnail for row, thumbnail in made.items()}
    return result


def _evaluation(run: RunDir) -> JsonObject:
    """What `clipbatch evaluate` wrote of this run; empty if it was not called, or the run has changed since."""
    with contextlib.suppress(OSError, ValueError):
        evaluation = parse_json(run.frozen("evaluation.json") or b"{}")
        if isinstance(evaluation, dict) and evaluation.get("fingerprint") == run.fingerprint() and shows(evaluation):
            return evaluation
    return {}


def _report_json(run: RunDir) -> JsonObject:
    """The report of the last invocation; empty if there is none, or the file is damaged."""
    with contextlib.suppress(OSError, DamagedRecordError):
        return unseal(run.frozen("report.json") or b"{}")[0]
    return {}
