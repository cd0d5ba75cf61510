"""The commands that make heads: import-head, fit-head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from clipbatch.cli.options import Json, complete_models
from clipbatch.cli.output import RunDirectory, json_text
from clipbatch.cli.standard_streams import result_is_on_disk

app = typer.Typer()
PANEL = "Heads"
HeadOut = Annotated[
    Path, typer.Option("--out", "-o", help="The .safetensors FILE to write; a .toml file goes beside it.")
]


def _choice(text: str) -> Any:
    return typer.Option(help=text)


@app.command("import-head", rich_help_panel=PANEL)
def import_head_command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A state_dict (.pth, .pt, .safetensors), or .npz with coef and intercept."),
    ],
    *,
    out: HeadOut,
    model: Annotated[
        Optional[str],
        typer.Option("--model", "-m", help="The model that it was trained for.", autocompletion=complete_models),
    ] = None,
    pretrained: Annotated[Optional[str], _choice("Its weights, as for run.")] = None,
    run: Annotated[Optional[str], _choice("In place of --model: a run directory with that model.")] = None,
    outputs: Annotated[Optional[str], _choice("Names of the outputs, a,b,c; default: as in FILE, or numbers.")] = None,
    result: Annotated[
        Optional[str], _choice("values, probabilities or classes; default: classes for .npz, else values.")
    ] = None,
    activation: Annotated[str, _choice("Between layers: none, relu, gelu, silu or tanh.")] = "none",
    unit_length: Annotated[
        bool,
        typer.Option(
            "--unit-length/--no-unit-length", help="Whether it was trained on embeddings that were scaled to length 1."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Make a head of a file of torch or scikit-learn, for run --head. Pickles are never run.

    Example: clipbatch import-head sac+logos+ava1-l14-linearMSE.pth --model ViT-L-14 --pretrained openai --out
    aesthetic.safetensors
    """
    from clipbatch.config.heads import to_json
    from clipbatch.tools.heads import importing

    result_is_on_disk()
    request = importing.Request(
        model=model,
        pretrained=pretrained,
        run=run,
        outputs=[name.strip() for name in outputs.split(",")] if outputs else None,
        result=result,
        activation=activation,
        unit_length=unit_length,
    )
    head = importing.import_head(file, out, request).head
    if as_json:
        print(json_text(to_json(head)))
        return
    print(f"wrote {out} and {out.with_suffix('.toml')}: layers {' -> '.join(map(str, head.layers))}, {head.result}")
    if head.weights_sha256 is None:
        print(f"the weights of {head.model} are not on this machine, so a run compares their name alone")
    if head.quick_gelu is None:
        print(f"the configuration of {head.model} is not on this machine, so no run checks whether it uses QuickGELU")


@app.command("fit-head", rich_help_panel=PANEL)
def fit_head_command(
    run: RunDirectory,
    *,
    truth: Annotated[
        str,
        typer.Option("--truth", help="A column of the input, or a .csv, .tsv or .parquet FILE with row_id or uri."),
    ],
    out: HeadOut,
    held_out: Annotated[float, _choice("Share of the images to try it on; it is not fitted on these.")] = 0.2,
    c: Annotated[Optional[float], typer.Option("--c", help="scikit-learn's C; default: chosen among 0.1 to 1000.")] = (
        None
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed holds out other images.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a classifier to a run's saved embeddings and their true classes, as a head. Needs clipbatch[fit].

    Example: clipbatch fit-head scores/ --truth category --out category.safetensors
    """
    from clipbatch.tools.heads import fit

    result_is_on_disk()
    result = fit.fit(run, out, fit.Request(truth=truth, held_out=held_out, c=c, seed=seed))
    print(json_text(result) if as_json else fit.text(result))
