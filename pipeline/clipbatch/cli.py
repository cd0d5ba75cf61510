"""The command line: parse, build settings, call one function, map errors to exit codes. No work is done here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from clipbatch import __version__, interrupts, submit
from clipbatch.config import Settings
from clipbatch.errors import ClipbatchError, DamagedError, InputError
from clipbatch.options import Json, Out, Overwrite, takes_settings, takes_some

EXIT_CODES = """\
Exit codes: 0 done (bad images included), 2 usage, 3 input or settings refused, 4 more bad images than --max-bad,
5 verify found damage, 6 another process is at the same dataset, 75 interrupted (the same command resumes), 1 a bug."""

app = typer.Typer(
    name="clipbatch",
    help="Label millions of images with an OpenCLIP model; leave Parquet that can be queried at once.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


RunDirectory = Annotated[str, typer.Argument(help="A run directory.", metavar="RUN")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; errors only.")]


@app.command("run", rich_help_panel="Label images")
@takes_settings
def run_command(
    settings: Settings,
    *,
    out: Out,
    retry_bad: Annotated[bool, typer.Option("--retry-bad", help="Try the bad images of finished parts again.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Verify first, and do damaged parts again.")] = False,
    overwrite: Overwrite = False,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Add what is new or changed to the dataset in --out, as one more run.")
    ] = False,
    hash_contents: Annotated[
        bool, typer.Option("--hash-contents", help="With --incremental: go by what files hold, not by size and time.")
    ] = False,
    metrics: Annotated[
        Optional[Path], typer.Option("--metrics", help="Also write a FILE.prom for Prometheus' node exporter.")
    ] = None,
    one_line: Annotated[bool, typer.Option("--one-line", help="No progress; the summary in one line.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label images, or go on with a run (then --out alone is enough).

    Example: clipbatch run photos/ --labels cat,dog,bird --out scores/
    """
    from clipbatch import api, summary

    silent = quiet or one_line
    if incremental:
        from clipbatch import increment

        if retry_bad or repair or overwrite:
            raise InputError("--incremental adds a run: give --retry-bad, --repair or --overwrite to one of its runs")
        made = increment.run(settings, out, hash_contents=hash_contents, quiet=silent)
    elif hash_contents:
        raise InputError("--hash-contents says how --incremental compares: add that, or leave it out")
    else:
        made = api.run(settings, out, retry_bad=retry_bad, repair=repair, overwrite=overwrite, quiet=silent)
    if metrics:
        summary.write_metrics(metrics, made)
    folder = made.get("increment", {}).get("folder") or out
    if one_line and not as_json:
        print(summary.line(folder, made))
    else:
        _show(made, folder, quiet, as_json)


@app.command("plan", rich_help_panel="Label images")
@takes_settings
def plan_command(settings: Settings, *, out: Out, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """List the input and freeze it into a run directory, without reading an image.

    Example: clipbatch plan photos/ --labels labels.txt --out scores/
    """
    from clipbatch import api

    plan = api.plan(settings, out, overwrite=overwrite)
    found = {
        "rows": plan.rows,
        "shards": plan.shards,
        "shard_size": plan.shard_size,
        "passed_over": plan.passed_over,
        "duplicates": "not counted" if plan.duplicates is None and not as_json else plan.duplicates,
        "fingerprint": plan.fingerprint,
    }
    _print(found, as_json)


@app.command("rescore", rich_help_panel="Label images")
@takes_some("labels", "template", "score", "layout", "top_k", "scores_dtype", "compression", "embeddings")
def rescore_command(
    given: dict[str, Any],
    *,
    run: RunDirectory,
    out: Out,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the embeddings that a run has saved with other labels; no image is read. The same command resumes.

    Example: clipbatch rescore scores/ --labels new.toml --out new-scores/
    """
    from clipbatch import api

    _show(api.rescore(run, out, given, device=device, overwrite=overwrite, quiet=quiet), out, quiet, as_json)


@app.command("compact", rich_help_panel="Look at a run")
def compact_command(
    run: RunDirectory,
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A folder for the files, or a url in a store.")],
    rows_per_file: Annotated[Optional[int], typer.Option(help="Most rows of a file; default: about 512 MiB.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a finished run's parts into few big files, every checksum verified. The same command resumes.

    Example: clipbatch compact scores/ --out s3://bucket/scores/
    """
    from clipbatch import api

    _print(api.compact(run, out, rows_per_file=rows_per_file), as_json)


@app.command("status", rich_help_panel="Look at a run")
def status_command(run: RunDirectory, as_json: Json = False) -> None:
    """How far a run is: one directory listing.

    Example: clipbatch status scores/
    """
    from clipbatch import api

    _print(api.status(run), as_json)


@app.command("verify", rich_help_panel="Look at a run")
def verify_command(run: RunDirectory, as_json: Json = False) -> None:
    """Check that every row is there once, in order, whole and of this run. Exit code 5 if not.

    Example: clipbatch verify scores/
    """
    from clipbatch import api

    plan, found = api.verify(run)
    if as_json:
        print(json.dumps({"rows": plan.rows, "parts": plan.shards, "problems": [text for _, text in found]}, indent=2))
    elif not found:
        print(f"{run}: {plan.rows} rows in {plan.shards} parts, every one there once, in order and whole")
    if found:
        lines = "\n".join(text for _, text in found[:20])
        raise DamagedError(
            f"{len(found)} of {plan.shards} parts are not as they should be:\n{lines}\n"
            f"remedy: clipbatch run --out {run} --repair"
        )


@app.command("report", rich_help_panel="Look at a run")
def report_command(
    run: RunDirectory,
    out: Annotated[
        Optional[str],
        typer.Option("--out", "-o", help="The file to write; default: report.html in the run directory."),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, max=50, help="Confident images shown for each label, and doubtful ones.")
    ] = 6,
) -> None:
    """Make a page to look at: one HTML file of a few megabytes at most, with thumbnails, that needs nothing else.

    Example: clipbatch report scores/
    """
    from clipbatch import htmlreport

    print(htmlreport.write(run, out=out, examples=examples))


@app.command("labels", rich_help_panel="Look things up")
def labels_command(
    labels: Annotated[str, typer.Argument(help="A text or TOML file, a shipped set's name, or a,b,c.")],
    template: Annotated[Optional[list[str]], typer.Option(help="As for run.")] = None,
    as_json: Json = False,
) -> None:
    """Show the prompts as the model will see them.

    Example: clipbatch labels documents-10
    """
    from clipbatch.config import LabelSettings
    from clipbatch.labels import load

    found = load(LabelSettings(labels=labels, template=tuple(template or ())))
    prompts = [dict(zip(group.names, group.prompts, strict=True)) for group in found.groups]
    if as_json:
        print(json.dumps(found.by_group(prompts), indent=2, ensure_ascii=False))
        return
    for group, texts_of in zip(found.groups, prompts, strict=True):
        least = [] if group.threshold is None else [f"no label below {group.threshold}"]
        if group.name or least:
            print("# " + ", ".join([*([f"group {group.name}"] if group.name else []), *least]))
        for name, texts in texts_of.items():
            print("\n    ".join([name, *texts]))


@app.command("models", rich_help_panel="Look things up")
def models_command(
    pattern: Annotated[str, typer.Argument(help="Show only names that hold this text.")] = "",
    as_json: Json = False,
) -> None:
    """List the models with their cost: parameters and operations of the image tower, and its input size.

    Example: clipbatch models ViT-B
    """
    from clipbatch.catalog import entries

    found = [entry for entry in entries() if pattern.lower() in entry.name.lower()]
    if as_json:
        rows = [{name: getattr(entry, name) for name in entry.__slots__} for entry in found]
        print(json.dumps(rows, indent=2))
        return
    print(f"{'model':40} {'input':>6} {'image Mparam':>13} {'GFLOP an image':>15}")
    for entry in found:
        print(f"{entry.name:40} {entry.image_size:>6} {entry.image_mparams:>13.3g} {entry.image_gflop:>15.3g}")


@app.command("demo", rich_help_panel="Label images")
def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory.")] = Path("clipbatch-demo"),
    quiet: Quiet = False,
) -> None:
    """Label the sample images that come with clipbatch, with the embedded model, and show the result.

    Example: clipbatch demo
    """
    from clipbatch import api

    print(api.demo(out, quiet=quiet))


app.add_typer(submit.app, name="submit", rich_help_panel="Label images")


def _show(made: dict[str, Any], out: str, quiet: bool, as_json: bool) -> None:
    """The end of a run: its report, or a summary of it."""
    from clipbatch import summary

    if as_json:
        print(json.dumps(made, indent=2))
    elif not quiet:
        print(summary.text(out, made))


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:14} {json.dumps(value) if isinstance(value, dict) else value}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"clipbatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; end the process with the exit code of what happened."""
    interrupts.install()
    try:
        app()
    except ClipbatchError as error:
        print(f"clipbatch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
