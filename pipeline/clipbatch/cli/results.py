"""The commands for the results of a run: status, verify, report, compact."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer

from clipbatch.cli.options import Json
from clipbatch.cli.output import RunDirectory, json_text, print_facts
from clipbatch.cli.standard_streams import result_is_on_disk
from clipbatch.errors import DamagedError, InputError, InterruptedRunError

app = typer.Typer()
PANEL = "Look at a run"
# How many problems `verify` prints.
_MAX_SHOWN = 20
_WATCH_EVERY_S = 10.0


@app.command("status", rich_help_panel=PANEL)
def status_command(
    run: RunDirectory,
    watch: Annotated[
        bool, typer.Option("--watch", help="Say it again every 10 seconds, until the run is complete.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show how far a run is, how fast, who is at work, and what to do next.

    RUN may be a dataset of increments. With --watch, --json prints one line each time.

    Example: clipbatch status scores/
    """
    from clipbatch.runs.status import status
    from clipbatch.runs.status_text import text

    with contextlib.suppress(InterruptedRunError) if watch else contextlib.nullcontext():
        while True:
            found = status(run)
            print(json_text(found, indent=None if watch else 2) if as_json else text(found), flush=True)
            if not watch or found["complete"]:
                return
            if not as_json:
                print()
            time.sleep(_WATCH_EVERY_S)


@app.command("verify", rich_help_panel=PANEL)
def verify_command(
    run: RunDirectory,
    restore: Annotated[
        bool,
        typer.Option(
            "--restore", help="First restore run.json, model.json, text.npy and heads.safetensors if damaged."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check that every row is there once, in order, intact and of this run. Exit code 5 if not.

    --restore replaces a damaged one of these files by its second copy, or a damaged copy by the file. It changes
    no part. RUN may be a dataset of increments.

    Example: clipbatch verify scores/
    """
    from clipbatch.runs import increments, latest

    checks = [_verify(path, restore) for path in increments.runs_in(run)]
    rows, shards = sum(check.rows for check in checks), sum(check.parts for check in checks)
    tables = latest.damaged_tables(Path(run)) if increments.is_dataset(run) else []
    errors = [error for check in checks for error in check.errors]
    errors += [_listed("a table of the dataset is not as it should be:", [text], remedy) for text, remedy in tables]
    if as_json:
        problems = [*(problem for check in checks for problem in check.problems), *(text for text, _ in tables)]
        print(json_text({"rows": rows, "parts": shards, "problems": problems}))
    elif not errors:
        parts = "1 part" if shards == 1 else f"{shards} parts"
        parts += f" of {len(checks)} increments" if len(checks) != 1 else ""
        print(f"{run}: {rows} rows in {parts}, every one there once, in order and whole")
    if errors:
        raise DamagedError("\n\n".join(errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """What `verify` has found out about one run."""

    rows: int
    parts: int
    problems: list[str]
    # What to print, with the remedies.
    errors: list[str]


def _verify(run: str, restore: bool) -> _Check:
    from clipbatch.rundir import damage
    from clipbatch.rundir.layout import RunDir
    from clipbatch.runs import run as api

    for line in damage.restore(RunDir(run)) if restore else ():
        print(line, file=sys.stderr)
    plan, damaged_parts = api.verify(run)
    files = damage.problems(RunDir(run), plan)
    errors = []
    if files:
        errors.append(_describe("files beside the parts are", files, damage.remedy(RunDir(run))))
    missing = [text for _, text in damaged_parts if text.endswith(": missing")]
    if damaged := [text for _, text in damaged_parts if text not in missing]:
        summary = f"{len(damaged)} of {plan.shards} parts are"
        errors.append(_describe(summary, damaged, f"clipbatch run --out {run} --repair"))
    if missing:
        summary = f"{len(missing)} of {plan.shards} parts are not there: they have not been done yet, or are deleted:"
        errors.append(_listed(summary, missing, f"clipbatch run --out {run}"))
    problems = [*files, *(text for _, text in damaged_parts)]
    return _Check(rows=plan.rows, parts=plan.shards, problems=problems, errors=errors)


def _describe(summary: str, problems: list[str], remedy: str) -> str:
    return _listed(f"{summary} not as they should be:", problems, remedy)


def _listed(summary: str, problems: list[str], remedy: str) -> str:
    more = [f"and {len(problems) - _MAX_SHOWN} more, which --json lists"] if len(problems) > _MAX_SHOWN else []
    return "\n".join([summary, *problems[:_MAX_SHOWN], *more, "", f"remedy: {remedy}"])


@app.command("report", rich_help_panel=PANEL)
def report_command(
    run: RunDirectory,
    out: Annotated[
        Optional[str],
        typer.Option("--out", "-o", help="The file to write; default: report.html in RUN."),
    ] = None,
    examples: Annotated[
        int,
        typer.Option("--examples", min=0, max=50, help="How many sure and how many doubtful images to show a label."),
    ] = 6,
    zoom: Annotated[
        bool, typer.Option("--zoom", help="Draw scores and margins over their own range, not from 0 to 1.")
    ] = False,
) -> None:
    """Write an HTML page about a run: a single file with thumbnails, a few megabytes at most.

    RUN may be a dataset of increments. Then the page shows the latest row of each image.

    Example: clipbatch report scores/
    """
    from clipbatch.tools import htmlreport

    result_is_on_disk()
    print(htmlreport.write(run, out=out, examples=examples, zoom=zoom))


@app.command("evaluate", rich_help_panel=PANEL)
def evaluate_command(
    run: RunDirectory,
    more_labels: Annotated[
        Optional[list[str]], typer.Argument(metavar="[FILE...]", help="After --labels: further label files.")
    ] = None,
    *,
    truth: Annotated[
        str,
        typer.Option("--truth", help="A column of the input, or a .csv, .tsv or .parquet FILE with row_id or uri."),
    ],
    mapping: Annotated[
        Optional[str], typer.Option("--mapping", help="A .csv or .json FILE: a label for each name in the truth.")
    ] = None,
    group: Annotated[Optional[str], typer.Option("--group", help="Which label group, if there are several.")] = None,
    labels: Annotated[
        Optional[list[str]], typer.Option("--labels", help="Label files to rank on the run's saved embeddings.")
    ] = None,
    thresholds: Annotated[
        Optional[str], typer.Option("--thresholds", help="Choose a threshold for each label; write OUT.toml.")
    ] = None,
    precision: Annotated[
        Optional[float], typer.Option("--precision", help="What --thresholds reach, as 0.95; default: the best F1.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Also make the report page, with a section.")] = True,
    as_json: Json = False,
) -> None:
    """Compare a run's labels with the truth: accuracy, confusions, calibration, thresholds. Reads no image but for the
    page.

    Example: clipbatch evaluate scores/ --truth category
    """
    from clipbatch.tools import evaluate, htmlreport

    result_is_on_disk()
    if more_labels and not labels:
        raise InputError(f"{more_labels[0]}: label files come after --labels")
    request = evaluate.Request(
        truth=truth,
        mapping=mapping,
        group=group,
        labels=[*(labels or ()), *(more_labels or ())],
        thresholds=thresholds,
        precision=precision,
    )
    found = evaluate.evaluate(run, request)
    print(json_text(found) if as_json else evaluate.text(found))
    if page:
        place = htmlreport.write(run)
        if not as_json:
            print(f"to look at it: {place}")


@app.command("review", rich_help_panel=PANEL)
def review_command(
    run: RunDirectory,
    *,
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="A FILE: .csv, .parquet, .html with thumbnails, or .json for Label Studio."),
    ],
    per_label: Annotated[int, typer.Option("--per-label", min=0, help="Images of each label, drawn at random.")] = 0,
    doubtful: Annotated[int, typer.Option("--doubtful", min=0, help="Images with the smallest margins.")] = 0,
    random: Annotated[int, typer.Option("--random", min=0, help="Images drawn at random from all others.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other images.")] = 0,
    group: Annotated[Optional[str], typer.Option("--group", help="Which label group, if there are several.")] = None,
    url_prefix: Annotated[
        Optional[str], typer.Option("--url-prefix", help="For Label Studio: what comes before each uri.")
    ] = None,
) -> None:
    """Draw the images that a person should look at first, to be answered and given to evaluate --truth.

    Example: clipbatch review scores/ --out queue.csv --per-label 20 --doubtful 50
    """
    from clipbatch.tools import review

    result_is_on_disk()
    draws = review.Draws(per_label=per_label, doubtful=doubtful, random=random, seed=seed)
    for path in review.make(run, out, draws, group=group, url_prefix=url_prefix):
        print(path)


@app.command("compact", rich_help_panel=PANEL)
def compact_command(
    run: RunDirectory,
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A folder for the files, or a URL in an object store.")],
    rows_per_file: Annotated[
        Optional[int], typer.Option(help="Maximum rows in a file; default: about 512 MiB.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Write nothing but the files: no run directory, and no manifest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a finished run into one with few large parts, and verify it. The same command resumes.

    RUN may be a dataset of increments. Then the latest row of each image is copied, as with --flat.

    Example: clipbatch compact scores/ --out s3://bucket/scores/
    """
    from clipbatch.runs import compact_dataset, increments
    from clipbatch.runs import run as api

    result_is_on_disk()
    if is_dataset := increments.is_dataset(run):
        done = compact_dataset.compact(run, out, rows_per_file=rows_per_file)
    else:
        done = api.compact(run, out, rows_per_file=rows_per_file, flat=flat)
    print_facts(done, as_json)
    if as_json:
        return
    if flat or is_dataset:
        print(f"{out} has rows and nothing else of {run}: keep {run} to verify, retry, rescore or add to it")
    elif done["source_may_be_deleted"]:
        print(f"all rows of {run} are in {out}, compared and verified: {run} may be deleted")
    else:
        print(f"all rows of {run} are in {out}, compared and verified: keep {run}, an increment, for the next night")
