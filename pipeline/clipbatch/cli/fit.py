"""The commands that fit clipbatch and a machine together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipbatch.cli.options import Input, Json, takes_some
from clipbatch.errors import UnfitError

if TYPE_CHECKING:
    from clipbatch.tune import Trial

app = typer.Typer()
PANEL = "Fit it to a machine"


@app.command("doctor", rich_help_panel=PANEL)
@takes_some("model", "pretrained")
def doctor_command(
    given: dict[str, Any],
    *,
    place: Annotated[
        str, typer.Argument(metavar="[INPUT]", help="File or folder to measure the disk on; default: this folder.")
    ] = ".",
    as_json: Json = False,
) -> None:
    """Check driver, GPU, decoders, cores, disk and weights; each line is ok, a warning or a failure with its remedy.

    Exit code 5 if there is a failure. Works without a GPU.

    Example: clipbatch doctor photos/ --model ViT-B-32
    """
    from clipbatch.config import from_flat
    from clipbatch.doctor import examine, lines

    settings = from_flat(given).model
    found = []
    for finding in examine(place, settings.model, settings.pretrained):
        found.append(finding)
        if not as_json:
            print(lines([finding]), flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    failed = [finding.name for finding in found if finding.level == "failure"]
    if failed:
        raise UnfitError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


@app.command("tune", rich_help_panel=PANEL)
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
    "image_column",
    "limit",
)
def tune_command(
    given: dict[str, Any],
    *,
    inputs: Input,
    out: Annotated[Path, typer.Option("--out", "-o", help="The settings file to write.")] = Path("tuned.toml"),
    budget: Annotated[float, typer.Option(min=10, help="Seconds that it may take in all.")] = 90.0,
    as_json: Json = False,
) -> None:
    """Find the fastest settings for decoding your images on this machine; write them for run --config.

    What is given as an option stays as it is. A run that is planned with other settings is another run.

    Example: clipbatch tune photos/ --model ViT-B-32 --out tuned.toml
    """
    from clipbatch.config import from_flat
    from clipbatch.tune import settings_file, tune

    settings_file.check_target(out)
    settings = from_flat({**given, "inputs": inputs})
    rates: list[float | None] = []

    def tell(trial: Trial) -> None:
        rates.append(trial.images_per_s)
        if not as_json:
            print(settings_file.row(trial, rates[0]), flush=True)

    if not as_json:
        print(settings_file.HEADER, flush=True)
    found = tune(settings, budget, tell)
    settings_file.write(out, found, settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print(f"\n{settings_file.text(found, settings)}\nwritten to {out}: clipbatch run INPUT --config {out} ...")
