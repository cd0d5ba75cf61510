"""The commands that prepare a machine and fit clipbatch to it: init, fetch, parity, doctor, tune."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from clipbatch.cli.options import Input, Json, complete_labels, complete_models, takes_some
from clipbatch.cli.output import json_text
from clipbatch.cli.standard_streams import result_is_on_disk
from clipbatch.config import SettingValues, from_flat
from clipbatch.errors import InputError, UnfitError

if TYPE_CHECKING:
    from clipbatch.tools.models import Fetched
    from clipbatch.tools.tune import Trial


app = typer.Typer()
PANEL = "Get ready"
_COMPARED = (
    *("inputs", "config", "labels", "template", "model", "pretrained", "precision", "device", "batch_size"),
    *("root", "all_files", "uri_column", "no_header", "image_column", "decoder", "orientation", "background"),
    "max_pixels",
)


@app.command("init", rich_help_panel=PANEL)
def init_command(
    folder: Annotated[Path, typer.Argument(help="The folder to write to.", metavar="[FOLDER]")] = Path("."),
    images: Annotated[Optional[str], typer.Option(help="What to label, like INPUT of run.")] = None,
    labels: Annotated[
        Optional[str], typer.Option("--labels", "-l", help="As for run.", autocompletion=complete_labels)
    ] = None,
    model: Annotated[
        Optional[str], typer.Option("--model", "-m", help="As for run.", autocompletion=complete_models)
    ] = None,
    pretrained: Annotated[Optional[str], typer.Option(help="As for run.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; use defaults for missing options.")] = False,
) -> None:
    """Write clipbatch.toml and labels.txt to start from; asks for missing options. Overwrites nothing.

    Example: clipbatch init --images photos/ --labels cat,dog,bird --yes
    """
    from clipbatch.config import models
    from clipbatch.tools import quickstart

    result_is_on_disk()
    quickstart.check_free(folder)
    asks = not yes and sys.stdin.isatty()
    if not images and asks:
        question, default = "What to label (a folder, a manifest, a url)", quickstart.likely_images()
        images = _ask(question, quickstart.check_images, default)
    if not images or not (labels or asks or yes):
        raise InputError("give --images, and --labels or --yes; or run clipbatch init on a terminal, where it asks")
    if not labels:
        labels = quickstart.EXAMPLE_LABELS
        if asks:
            labels = _ask("Labels (a,b,c, a FILE, or a shipped set's name)", quickstart.check_labels, labels)
    if not model:
        model = "ViT-B-32"
        if asks:
            model = _ask("Model (clipbatch-demo needs no download)", models.canonical, model)
    paths = quickstart.write(folder, images=images, label_spec=labels, model=model, pretrained=pretrained)
    for path in paths:
        print(f"wrote {path}")
    print(f"next: clipbatch run --config {shlex.quote(str(paths[0]))} --out scores/")


def _ask(question: str, check: Callable[[str], str], default: str | None = None) -> str:
    """The user's answer. Asks again as long as `check` refuses it."""

    def checked(text: str) -> str:
        try:
            check(text)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
        return text

    answer: str = typer.prompt(question, default=default, value_proc=checked)
    return answer


@app.command("parity", rich_help_panel=PANEL)
@takes_some(*_COMPARED)
def parity_command(
    values: SettingValues,
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many images to compare, spread evenly over the input.")] = 200,
    out: Annotated[
        Optional[str], typer.Option("--out", "-o", help="An HTML FILE to write, with the images that differ most.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the fast path on this machine with open_clip's own transform and model in fp32, using your images.

    Example: clipbatch parity photos/ --labels labels.txt --out parity.html
    """
    from clipbatch.tools.parity import compare, verdict

    summary, page = compare.compare(from_flat(values), limit=limit, out=out)
    if as_json:
        print(json_text(summary))
        return
    print(verdict.text(summary))
    if page:
        print(f"to look at it: {page}")


@app.command("fetch", rich_help_panel=PANEL)
def fetch_command(
    model: Annotated[str, typer.Argument(help="As --model of run.", autocompletion=complete_models)],
    pretrained: Annotated[Optional[str], typer.Option(help="As for run.")] = None,
    as_json: Json = False,
) -> None:
    """Download a model once, for machines without a network, and print where it is.

    Example: clipbatch fetch ViT-B-32
    """
    from clipbatch.tools import models

    result_is_on_disk()
    fetched = models.fetch(model, pretrained)
    print(json_text(fetched) if as_json else _offline(fetched))


def _offline(fetched: Fetched) -> str:
    """How to use the model on this machine and on one without a network."""
    weights = f" --pretrained {shlex.quote(fetched['pretrained'])}" if fetched["pretrained"] else ""
    use = f"clipbatch run ... --model {shlex.quote(fetched['model'])}{weights}"
    lines = [
        f"{fetched['weights']}: {fetched['bytes'] / 1e6:.0f} MB, sha256 {fetched['sha256']}",
        f"use it here: {use}",
    ]
    if fetched["cache"]:
        lines.append(
            f"on a machine without a network: cp -a {shlex.quote(fetched['cache'])} to FOLDER there, then\n"
            f"  HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1 {use}"
        )
    return "\n".join(lines)


FIT_PANEL = "Fit it to a machine"


@app.command("doctor", rich_help_panel=FIT_PANEL)
@takes_some("model", "pretrained")
def doctor_command(
    values: SettingValues,
    *,
    place: Annotated[
        str, typer.Argument(metavar="[INPUT]", help="File or folder to measure the disk with; default: this folder.")
    ] = ".",
    as_json: Json = False,
) -> None:
    """Check driver, GPU, decoders, cores, disk and weights. Each line is ok, a warning or a failure with its remedy.

    Exit code 5 if there is a failure. Works without a GPU.

    Example: clipbatch doctor photos/ --model ViT-B-32
    """
    from clipbatch.config import from_flat
    from clipbatch.tools.doctor import examine, lines

    settings = from_flat(values).model
    findings = []
    for finding in examine(place, settings.model, settings.pretrained):
        findings.append(finding)
        if not as_json:
            print(lines([finding]), flush=True)
    if as_json:
        print(json_text([dataclasses.asdict(finding) for finding in findings]))
    failed = [finding.name for finding in findings if finding.level == "failure"]
    if failed:
        raise UnfitError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


@app.command("tune", rich_help_panel=FIT_PANEL)
@takes_some(
    "model",
    "pretrained",
    "precision",
    "device",
    "decoder",
    "batch_size",
    "orientation",
    "root",
    "uri_column",
    "no_header",
    "image_column",
    "limit",
)
def tune_command(
    values: SettingValues,
    *,
    inputs: Input,
    out: Annotated[Path, typer.Option("--out", "-o", help="The settings file to write.")] = Path("tuned.toml"),
    budget: Annotated[float, typer.Option(min=10, help="Seconds that the search may take in all.")] = 90.0,
    as_json: Json = False,
) -> None:
    """Find the fastest settings for decoding your images on this machine, and write them for run --config.

    Settings that you give as options are not changed. A run planned with other settings is another run.

    Example: clipbatch tune photos/ --model ViT-B-32 --out tuned.toml
    """
    from clipbatch.config import from_flat
    from clipbatch.tools.tune import search, tune

    result_is_on_disk()
    search.check_target(out)
    settings = from_flat({**values, "inputs": inputs})
    rates: list[float | None] = []

    def show_trial(trial: Trial) -> None:
        rates.append(trial.images_per_s)
        if not as_json:
            print(search.row(trial, rates[0]), flush=True)

    if not as_json:
        print(search.HEADER, flush=True)
    tuned = tune(settings, budget, show_trial)
    search.write(out, tuned, settings)
    if as_json:
        print(json_text(dataclasses.asdict(tuned)))
    else:
        print(f"\n{search.text(tuned, settings)}\nwritten to {out}: clipbatch run INPUT --config {out} ...")
