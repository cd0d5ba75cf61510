"""The commands that fit clipbatch and a machine together."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

from clipbatch.cli.options import Json, takes_some
from clipbatch.errors import UnfitError

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
