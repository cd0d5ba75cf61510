"""The commands that make a machine ready, and check it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import typer

from clipbatch.cli.options import Json, takes_some
from clipbatch.config import from_flat

app = typer.Typer()
PANEL = "Get ready"
_COMPARED = (
    *("inputs", "config", "labels", "template", "model", "pretrained", "precision", "device", "batch_size"),
    *("root", "all_files", "uri_column", "image_column", "decoder", "orientation", "max_pixels"),
)


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
