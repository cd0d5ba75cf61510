"""The commands that label images: run, plan, rescore, demo."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from clipbatch.cli.options import Json, Out, Overwrite, takes_settings, takes_some
from clipbatch.cli.output import LogFormat, Quiet, RunDirectory, json_text, logs_json, print_facts, show
from clipbatch.cli.standard_streams import result_is_on_disk
from clipbatch.config import Settings, SettingValues
from clipbatch.errors import InputError
from clipbatch.types import counts_text

if TYPE_CHECKING:
    from clipbatch.rundir.frozen_plan import Plan
    from clipbatch.runs.metrics import RunMetrics
    from clipbatch.workers.progress import Log

app = typer.Typer()
PANEL = "Label images"


@app.command("run", rich_help_panel=PANEL)
@takes_settings
def run_command(
    settings: Settings,
    *,
    out: Out,
    retry_bad: Annotated[bool, typer.Option("--retry-bad", help="Try the bad images of finished parts again.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Verify first, and make damaged parts again.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --repair: replace parts even if the new ones have fewer ok rows.")
    ] = False,
    overwrite: Overwrite = False,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Add new and changed images to the dataset in --out, as another run.")
    ] = False,
    hash_contents: Annotated[
        bool, typer.Option("--hash-contents", help="With --incremental: compare contents, not size and time.")
    ] = False,
    mark_deleted: Annotated[
        bool, typer.Option("--mark-deleted", help="With --incremental: mark images that the same INPUT has no more.")
    ] = False,
    confirm_deleted: Annotated[
        bool, typer.Option("--confirm-deleted", help="With --mark-deleted: also if more than 10% are gone.")
    ] = False,
    metrics: Annotated[
        Optional[Path],
        typer.Option(
            "--metrics", help="Write metrics to FILE.prom, every 15 s and at the end, for Prometheus' node exporter."
        ),
    ] = None,
    metrics_port: Annotated[
        Optional[str],
        typer.Option("--metrics-port", help="[HOST:]PORT for GET /metrics while the run works; loopback without HOST."),
    ] = None,
    one_line: Annotated[bool, typer.Option("--one-line", help="No progress, and a summary in one line.")] = False,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
    as_json: Json = False,
) -> None:
    """Label images, or continue a run (then --out alone is enough).

    Example: clipbatch run photos/ --labels cat,dog,bird --out scores/
    """
    from clipbatch.runs import report_text
    from clipbatch.runs import run as runner
    from clipbatch.workers.progress import Log

    result_is_on_disk()
    silent = quiet or one_line
    log = Log(quiet=silent, as_json=logs_json())
    if incremental and (retry_bad or repair or force or overwrite):
        raise InputError(
            "--incremental adds a run: give --retry-bad, --repair, --force or --overwrite to one of its runs"
        )
    if (hash_contents or mark_deleted or confirm_deleted) and not incremental:
        option = "--hash-contents" if hash_contents else "--mark-deleted" if mark_deleted else "--confirm-deleted"
        raise InputError(f"{option} is for --incremental: add --incremental, or leave {option} out")
    with _observer(metrics, metrics_port, log) as observer:
        if incremental:
            from clipbatch.runs import increments

            report = increments.run(
                settings,
                out,
                hash_contents=hash_contents,
                mark_deleted=mark_deleted,
                confirm_deleted=confirm_deleted,
                quiet=silent,
                log_json=logs_json(),
                observer=observer,
            )
        else:
            report = runner.run(
                settings,
                out,
                retry_bad=retry_bad,
                repair=repair,
                force=force,
                overwrite=overwrite,
                quiet=silent,
                log_json=logs_json(),
                observer=observer,
            )
        if observer:
            observer.succeed(report)
    folder = report.get("increment", {}).get("folder") or out
    if logs_json() or log.is_file:
        counts = counts_text(report["status"])
        log.write(
            "done", f"done: {folder}: {counts}", out=folder, rows_done=report["rows_done"], status=report["status"]
        )
    if one_line and not as_json:
        print(report_text.line(folder, report))
    else:
        show(report, folder, quiet, as_json)


def _observer(file: Path | None, port: str | None, log: Log) -> AbstractContextManager[RunMetrics | None]:
    """The metrics of a run as a context; None if nobody asks for them. Their library is loaded only here."""
    if file is None and port is None:
        return nullcontext()
    from clipbatch.runs.metrics import published

    return published(file, port, log)


@app.command("plan", rich_help_panel=PANEL)
@takes_settings
def plan_command(
    settings: Settings, *, out: Out, overwrite: Overwrite = False, quiet: Quiet = False, as_json: Json = False
) -> None:
    """List the input and freeze it in a run directory, without opening images.

    Example: clipbatch plan photos/ --labels labels.txt --out scores/
    """
    from clipbatch.runs import plan as planner

    result_is_on_disk()
    plan = planner.plan(settings, out, overwrite=overwrite)
    facts = {
        "rows": plan.rows,
        "shards" if as_json else "parts": plan.shards,
        "shard_size" if as_json else "rows a part": plan.shard_size,
        "device": plan.device if as_json else _device_text(plan, settings),
        "passed_over": plan.passed_over,
        "duplicates": "not counted" if plan.duplicates is None and not as_json else plan.duplicates,
        "fingerprint": plan.fingerprint,
    }
    if as_json or not quiet:
        print_facts(facts, as_json)


def _device_text(plan: Plan, settings: Settings) -> str:
    if plan.device != "cpu" or settings.model.device != "auto":
        return plan.device or "not recorded"
    return "cpu (to plan for GPUs: --device cuda)"


@app.command("estimate", rich_help_panel=PANEL)
@takes_settings
def estimate_command(
    settings: Settings,
    *,
    plan: Annotated[
        Optional[str], typer.Option("--plan", help="In place of an INPUT: what is left of this run directory.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="Seconds to label a sample; more if batches are slow."),
    ] = 30.0,
    usd_per_gpu_hour: Annotated[
        Optional[float], typer.Option("--usd-per-gpu-hour", help="Also say what the GPUs cost.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Label a random sample here, and say what all of it will take: time, GPU hours at --gpus N, bytes, bad images.

    Leaves nothing behind.

    Example: clipbatch estimate photos/ --labels labels.txt --gpus 8
    """
    from clipbatch.runs import estimate

    gpus = settings.launch.gpus or "1"
    if not gpus.isdecimal() or gpus == "0":
        raise InputError(f"--gpus {gpus}: for an estimate give how many GPUs the run will have, such as 8")
    if (plan is None) == (not settings.source.inputs):
        raise InputError("name an INPUT to estimate, or a run directory with --plan, and not both")
    offer = estimate.Offer(seconds=seconds, gpus=int(gpus), usd_per_gpu_hour=usd_per_gpu_hour)
    found = estimate.estimate(settings.replace(gpus=None), offer, plan=plan)
    print(json_text(found) if as_json else estimate.text(found))


@app.command("rescore", rich_help_panel=PANEL)
@takes_some(
    *("labels", "template", "head", "head_anyway", "caption_column"),
    *("score", "layout", "top_k", "scores_dtype", "compression", "embeddings"),
)
def rescore_command(
    values: SettingValues,
    *,
    run: RunDirectory,
    out: Out,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the saved embeddings of a run with other labels, heads or captions, without reading images. The same
    command resumes.

    RUN may be a dataset of increments. Then --out becomes one too.

    Example: clipbatch rescore scores/ --labels new.toml --out new-scores/
    """
    from clipbatch.runs import increments
    from clipbatch.runs import run as runner

    result_is_on_disk()
    for source, target in increments.each(run, out):
        report = runner.rescore(source, target, values, device=device, overwrite=overwrite, quiet=quiet)
        show(report, target, quiet, as_json)
    for note in increments.follow(run, out):
        print(f"note: {note}", file=sys.stderr)


@app.command("demo", rich_help_panel=PANEL)
def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory.")] = Path("clipbatch-demo"),
    quiet: Quiet = False,
) -> None:
    """Label the sample images that come with clipbatch, using the embedded model, and show the result.

    Example: clipbatch demo
    """
    from clipbatch.tools.quickstart import label

    result_is_on_disk()
    print(label(out, quiet=quiet))
