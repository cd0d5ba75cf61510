"""The commands `labels` and `models`, which list things."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from clipbatch.cli.options import Json

app = typer.Typer()
PANEL = "Look things up"


@app.command("labels", rich_help_panel=PANEL)
def labels_command(
    labels: Annotated[str, typer.Argument(help="A text or TOML file, a shipped set's name, or a,b,c.")],
    template: Annotated[Optional[list[str]], typer.Option(help="As for run.")] = None,
    as_json: Json = False,
) -> None:
    """Show the prompts that the model will see.

    Example: clipbatch labels documents-10
    """
    from clipbatch.config import LabelSettings
    from clipbatch.config.labels import load

    label_set = load(LabelSettings(labels=labels, template=tuple(template or ())))
    prompts = [dict(zip(group.names, group.prompts, strict=True)) for group in label_set.groups]
    if as_json:
        print(json.dumps(label_set.by_group(prompts), indent=2, ensure_ascii=False))
        return
    for group, prompts_by_label in zip(label_set.groups, prompts, strict=True):
        threshold = [] if group.threshold is None else [f"no label below {group.threshold}"]
        if group.name or threshold:
            print("# " + ", ".join([*([f"group {group.name}"] if group.name else []), *threshold]))
        for name, texts in prompts_by_label.items():
            print("\n    ".join([name, *texts]))


@app.command("models", rich_help_panel=PANEL)
def models_command(
    pattern: Annotated[str, typer.Argument(help="Show only names that contain this text.")] = "",
    as_json: Json = False,
) -> None:
    """List the models with parameters and operations of the image tower, and the input size; also images/s, if make
    bench has measured them on this machine.

    Example: clipbatch models ViT-B
    """
    from clipbatch.config.models import entries
    from clipbatch.tools.models import measured

    rates = measured()
    models = [entry for entry in entries() if pattern.lower() in entry.name.lower()]
    if as_json:
        rows = [
            {name: getattr(entry, name) for name in entry.__slots__} | {"images_per_s": rates.get(entry.name)}
            for entry in models
        ]
        print(json.dumps(rows, indent=2))
        return
    rate_header = f" {'images/s here':>14}" if any(entry.name in rates for entry in models) else ""
    print(f"{'model':40} {'input':>6} {'image Mparam':>13} {'GFLOP an image':>15}{rate_header}")
    for entry in models:
        rate = f" {rates[entry.name]:>14.3g}" if entry.name in rates else ""
        print(f"{entry.name:40} {entry.image_size:>6} {entry.image_mparams:>13.3g} {entry.image_gflop:>15.3g}{rate}")
