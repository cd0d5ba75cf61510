"""`clipbatch export ...`: parse, call one function, say what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional, cast

import typer

from clipbatch.cli.options import Json, takes_some
from clipbatch.cli.output import json_text
from clipbatch.cli.standard_streams import result_is_on_disk
from clipbatch.config import SettingValues, from_flat
from clipbatch.errors import InputError

app = typer.Typer(help="Write a model for other servers.", no_args_is_help=True)
_LABELS_AND_MODEL = ("labels", "template", "model", "pretrained")
_IMAGES = ("decoder", "orientation", "background", "max_pixels", "max_bytes")


@app.command("onnx")
@takes_some(*_LABELS_AND_MODEL, "score")
def onnx_command(
    values: SettingValues,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX FILE to write; a JSON file goes beside it.")],
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for GPUs.")] = "fp32",
    batch_size: Annotated[
        Optional[int], typer.Option(min=1, help="Images in each batch; default: a batch may have any number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the image tower as ONNX: uint8 RGB pixels in, embeddings of unit length out; with --labels their features.

    The file is compared with torch before it is kept. Needs clipbatch[export].

    Example: clipbatch export onnx --model ViT-B-32 --labels labels.txt --out model.onnx
    """
    from clipbatch.tools.export import onnx

    result_is_on_disk()
    if precision not in ("fp32", "fp16"):
        raise InputError(f"--precision {precision!r} is not known to export onnx: use fp32 or fp16")
    chosen = cast(Literal["fp32", "fp16"], precision)
    record = onnx.export(from_flat(values), out, precision=chosen, batch_size=batch_size)
    if as_json:
        print(json_text(record))
        return
    for name in [*record["files"], out.with_suffix(".json").name]:
        print(f"wrote {out.with_name(name)}")
    print(f"cosine between ONNX Runtime and torch, at worst: {record['cosine_to_torch']:.6f}")


@app.command("triton")
@takes_some(*_LABELS_AND_MODEL, "precision", "device", "batch_size", "config", *_IMAGES, "score", "embeddings")
def triton_command(
    values: SettingValues,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The model repository, a FOLDER; made if it is not there.")],
    name: Annotated[str, typer.Option(help="Of the model, by which clients ask.")] = "clipbatch",
    instances: Annotated[int, typer.Option(help="Processes on each device that answer.")] = 1,
) -> None:
    """Write a model repository for NVIDIA Triton's Python backend, which answers as a run does.

    Give --device cuda where the server has GPUs and this machine has none.

    Example: clipbatch export triton --labels labels.txt --out models/
    """
    from clipbatch.tools.export import triton

    result_is_on_disk()
    made = triton.export(from_flat(values), out, name=name, instances=instances)
    print(f"wrote {made}\nnext: {made / 'README.md'}, then tritonserver --model-repository {out.absolute()}")
