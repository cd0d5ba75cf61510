"""The commands `labels` and `models`, which list things."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from clipbatch.cli.options import Json, complete_models
from clipbatch.cli.output import json_text
from clipbatch.config.nesting import JsonObject

if TYPE_CHECKING:
    from clipbatch.config.label_set import LabelGroup


app = typer.Typer()
PANEL = "Look things up"


@app.command("labels", rich_help_panel=PANEL)
def labels_command(
    labels: Annotated[str, typer.Argument(help="A label FILE, a shipped set's name, or a,b,c.")],
    template: Annotated[Optional[list[str]], typer.Option(help="As for run.")] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            "--model",
            "-m",
            help="Show the prompts as this model's tokenizer cuts them.",
            autocompletion=complete_models,
        ),
    ] = None,
    pretrained: Annotated[Optional[str], typer.Option(help="As for run.")] = None,
    as_json: Json = False,
) -> None:
    """Show the prompts that the model will see, and say which are too long for it.

    Example: clipbatch labels documents-10
    """
    from clipbatch.config import LabelSettings
    from clipbatch.config.labels import load, remarks
    from clipbatch.tools.label_prompts import cut_off

    label_set = load(LabelSettings(labels=labels, template=tuple(template or ())))
    texts = [text for texts in label_set.prompts for text in texts]
    name, read = cut_off(texts, model, pretrained)
    if as_json:
        shown = label_set.by_group([_prompts_of(group) for group in label_set.groups])
        print(json_text(shown, ensure_ascii=False))
    else:
        for group in label_set.groups:
            _print_group(group, {text: prompt.kept for text, prompt in read.items()} if model else {})
    for remark in remarks(label_set):
        print(f"note: {remark}", file=sys.stderr)
    if cut := [text for text, prompt in read.items() if prompt.is_cut]:
        print(
            f"note: {len(cut)} of {len(texts)} prompts are cut off, as {name} reads no more: {cut[0]!r} is read as "
            f"{read[cut[0]].kept!r}",
            file=sys.stderr,
        )


def _prompts_of(group: LabelGroup) -> JsonObject:
    """For each label its prompts; for each tag those of its two sides."""
    if group.opposites is None:
        return dict(zip(group.names, group.prompts, strict=True))
    sides = zip(group.prompts, group.opposing_prompts, strict=True)
    return {name: {"yes": yes, "no": no} for name, (yes, no) in zip(group.names, sides, strict=True)}


def _print_group(group: LabelGroup, read: Mapping[str, str]) -> None:
    """read: prompts that a model reads as something else."""
    facts = [f"group {group.name}"] if group.name else []
    facts += ["an image may have any number of labels"] if group.multiple else []
    facts += [] if group.threshold is None else [f"no label below {group.threshold}"]
    if facts:
        print("# " + ", ".join(facts))
    for name, cutoff, prompts in zip(group.names, group.cutoffs, _prompts_of(group).values(), strict=True):
        shows = group.multiple or name in group.thresholds
        print(name + (f"  (from {cutoff})" if shows and cutoff is not None else ""))
        sides = prompts if isinstance(prompts, dict) else {"": prompts}
        for side, texts in sides.items():
            for text in texts:
                print(f"    {side + ': ' if side else ''}{read.get(text, text)}")


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
        print(json_text(rows))
        return
    rate_header = f" {'images/s here':>14}" if any(entry.name in rates for entry in models) else ""
    print(f"{'model':40} {'input':>6} {'image Mparam':>13} {'GFLOP an image':>15}{rate_header}")
    for entry in models:
        rate = f" {rates[entry.name]:>14.3g}" if entry.name in rates else ""
        print(f"{entry.name:40} {entry.image_size:>6} {entry.image_mparams:>13.3g} {entry.image_gflop:>15.3g}{rate}")
