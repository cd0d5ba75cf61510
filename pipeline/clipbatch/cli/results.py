"""The commands for the results of a run: status, verify, report, compact."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Optional

import typer

from clipbatch.cli.options import Json
from clipbatch.cli.output import RunDirectory, print_facts
from clipbatch.cli.standard_streams import result_is_on_disk
from clipbatch.errors import DamagedError

app = typer.Typer()
PANEL = "Look at a run"
# How many problems `verify` prints.
_MAX_SHOWN = 20


@app.command("status", rich_help_panel=PANEL)
def status_command(run: RunDirectory, as_json: Json = False) -> None:
    """Show how far a run is. This only lists the directory.

    Example: clipbatch status scores/
    """
    from clipbatch.runs import run as api

    print_facts(api.status(run), as_json)


@app.command("verify", rich_help_panel=PANEL)
def verify_command(
    run: RunDirectory,
    restore: Annotated[
        bool,
        typer.Option("--restore", help="First restore run.json, model.json and text.npy if they are damaged."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that every row is there once, in order, intact and of this run. Exit code 5 if not.

    --restore replaces a damaged one of the three files by its second copy, or a damaged copy by the file. It changes
    no part.

    Example: clipbatch verify scores/
    """
    from clipbatch.rundir import damage
    from clipbatch.rundir.layout import RunDir
    from clipbatch.runs import run as api

    for line in damage.restore(RunDir(run)) if restore else ():
        print(line, file=sys.stderr)
    plan, damaged_parts = api.verify(run)
    files = damage.problems(RunDir(run), plan)
    if as_json:
        problems = [*files, *(text for _, text in damaged_parts)]
        print(json.dumps({"rows": plan.rows, "parts": plan.shards, "problems": problems}, indent=2))
    elif not damaged_parts and not files:
        parts = "1 part" if plan.shards == 1 else f"{plan.shards} parts"
        print(f"{run}: {plan.rows} rows in {parts}, every one there once, in order and whole")
    errors = []
    if files:
        errors.append(_describe("files beside the parts are", files, damage.remedy(RunDir(run))))
    if damaged_parts:
        summary = f"{len(damaged_parts)} of {plan.shards} parts are"
        errors.append(_describe(summary, [text for _, text in damaged_parts], f"clipbatch run --out {run} --repair"))
    if errors:
        raise DamagedError("\n\n".join(errors))


def _describe(summary: str, problems: list[str], remedy: str) -> str:
    more = [f"and {len(problems) - _MAX_SHOWN} more, which --json lists"] if len(problems) > _MAX_SHOWN else []
    return "\n".join([f"{summary} not as they should be:", *problems[:_MAX_SHOWN], *more, "", f"remedy: {remedy}"])


@app.command("report", rich_help_panel=PANEL)
def report_command(
    run: RunDirectory,
    out: Annotated[
        Optional[str],
        typer.Option("--out", "-o", help="The file to write; default: report.html in the run directory."),
    ] = None,
    examples: Annotated[
        int,
        typer.Option("--examples", min=0, max=50, help="How many sure and how many doubtful images to show a label."),
    ] = 6,
) -> None:
    """Write an HTML page about a run: a single file with thumbnails, a few megabytes at most.

    Example: clipbatch report scores/
    """
    from clipbatch.tools import htmlreport

    result_is_on_disk()
    print(htmlreport.write(run, out=out, examples=examples))


@app.command("compact", rich_help_panel=PANEL)
def compact_command(
    run: RunDirectory,
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A folder for the files, or a URL in an object store.")],
    rows_per_file: Annotated[
        Optional[int], typer.Option(help="Maximum rows in a file; default: about 512 MiB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy the parts of a finished run into a few large files, and verify every checksum. The same command resumes.

    RUN may be a dataset of increments. Then --out gets a folder for each increment.

    Example: clipbatch compact scores/ --out s3://bucket/scores/
    """
    from clipbatch.runs import increments
    from clipbatch.runs import run as api

    result_is_on_disk()
    for source, target in increments.each(run, out):
        print_facts(api.compact(source, target, rows_per_file=rows_per_file), as_json)
