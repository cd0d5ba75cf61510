"""The commands that make a machine ready, and check it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from clipbatch.cli.options import Json, complete_labels, complete_models, takes_some
from clipbatch.config import from_flat
from clipbatch.errors import InputError

app = typer.Typer()
PANEL = "Get ready"
_COMPARED = (
    *("inputs", "config", "labels", "template", "model", "pretrained", "precision", "device", "batch_size"),
    *("root", "all_files", "uri_column", "image_column", "decoder", "orientation", "max_pixels"),
)


@app.command("init", rich_help_panel=PANEL)
def init_command(
    folder: Annotated[Path, typer.Argument(help="Where to write.", metavar="[FOLDER]")] = Path("."),
    images: Annotated[Optional[str], typer.Option(help="What to label: as INPUT of run.")] = None,
    labels: Annotated[
        Optional[str], typer.Option("--labels", "-l", help="As for run.", autocompletion=complete_labels)
    ] = None,
    model: Annotated[
        Optional[str], typer.Option("--model", "-m", help="As for run.", autocompletion=complete_models)
    ] = None,
    pretrained: Annotated[Optional[str], typer.Option(help="As for run.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing; take the default of what is not given.")
    ] = False,
) -> None:
    """Write clipbatch.toml and labels.txt to start from, after asking for what is not given. Overwrites nothing.

    Example: clipbatch init --images photos/ --labels cat,dog,bird --yes
    """
    from clipbatch import catalog, init

    init.check_free(folder)
    asks = not yes and sys.stdin.isatty()
    images = images or (_ask("What to label (a folder, a manifest, a url)", init.check_images) if asks else None)
    if not images or not (labels or asks or yes):
        raise InputError("give --images, and --labels or --yes, or run clipbatch init on a terminal, which asks")
    if not labels:
        labels = init.EXAMPLE_LABELS
        if asks:
            labels = _ask("Labels (a,b,c, a FILE, or a shipped set's name)", init.check_labels, labels)
    if not model:
        model = "ViT-B-32"
        if asks:
            model = _ask("Model (clipbatch-demo needs no download)", catalog.canonical, model)
    written = init.write(folder, images=images, label_spec=labels, model=model, pretrained=pretrained)
    for path in written:
        print(f"wrote {path}")
    print(f"next: clipbatch run --config {shlex.quote(str(written[0]))} --out scores/")


def _ask(question: str, check: Callable[[str], str], default: str | None = None) -> str:
    """The answer, asked for again as long as `check` refuses it."""

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
    given: dict[str, Any],
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many images to compare, taken evenly from all.")] = 200,
    out: Annotated[
        Optional[str], typer.Option("--out", "-o", help="An HTML FILE to write, which shows the least alike images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare this machine's fast path with open_clip's own transform and model in fp32, on your images.

    Example: clipbatch parity photos/ --labels labels.txt --out parity.html
    """
    from clipbatch import parity
    from clipbatch.parity import verdict

    found, page = parity.compare(from_flat(given), limit=limit, out=out)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(verdict.text(found))
    if page:
        print(f"to look at it: {page}")


@app.command("fetch", rich_help_panel=PANEL)
def fetch_command(
    model: Annotated[str, typer.Argument(help="As --model of run.", autocompletion=complete_models)],
    pretrained: Annotated[Optional[str], typer.Option(help="As for run.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a model once, for machines without a network, and say where it lies.

    Example: clipbatch fetch ViT-B-32
    """
    from clipbatch import api

    found = api.fetch(model, pretrained)
    print(json.dumps(found, indent=2) if as_json else _offline(found))


def _offline(found: dict[str, Any]) -> str:
    weights = f" --pretrained {shlex.quote(found['pretrained'])}" if found["pretrained"] else ""
    use = f"clipbatch run ... --model {shlex.quote(found['model'])}{weights}"
    lines = [f"{found['weights']}: {found['bytes'] / 1e6:.0f} MB, sha256 {found['sha256']}", f"use it here: {use}"]
    if found["cache"]:
        lines.append(
            f"where there is no network: cp -a {shlex.quote(found['cache'])} to FOLDER there, then\n"
            f"  HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1 {use}"
        )
    return "\n".join(lines)
