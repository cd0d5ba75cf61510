"""The settings as options of the command line, shared by every command that plans a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from clipbatch.config import ANEW, Settings, from_flat, read_toml
from clipbatch.errors import InputError


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


def complete_models(start: str) -> list[str]:
    """Names of models for the shell."""
    from clipbatch.config import models

    return [name for name in models.names() if name.startswith(start)]


def complete_labels(start: str) -> list[str]:
    """Names of shipped label sets for the shell."""
    from clipbatch.config.labels import shipped

    return [name for name in shipped() if name.startswith(start)]


Input = Annotated[
    Optional[list[str]],
    typer.Argument(
        metavar="INPUT...",
        help="Folders, images, manifests (.txt, .csv, .jsonl, .parquet), .tar and .zip archives, urls, quoted patterns "
        "('x-{00..99}.tar', 'a/**/*.jpg'), or - for a manifest on stdin.",
    ),
]
Out = Annotated[
    str, typer.Option("--out", "-o", help="The run directory, or a url in a store; a run that is there is resumed.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away the run in --out and begin anew.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
SETTINGS: dict[str, Any] = {
    "labels": Annotated[
        Optional[str],
        _option(
            "Labels",
            "A text or TOML FILE, a shipped set's name, or a,b,c.",
            "--labels",
            "-l",
            autocompletion=complete_labels,
        ),
    ],
    "template": Annotated[
        Optional[list[str]],
        _option("Labels", "Prompt template with {} for the label, or a set: simple, openai; repeatable."),
    ],
    "model": Annotated[
        Optional[str],
        _option(
            "Model",
            "open_clip's name, clipbatch-demo, hf-hub:ORG/NAME, local-dir:FOLDER, or FILE.json.",
            "--model",
            "-m",
            autocompletion=complete_models,
        ),
    ],
    "pretrained": Annotated[
        Optional[str], _option("Model", "Weights: one of open_clip's tags, a FILE, or hf-hub:ORG/NAME.")
    ],
    "precision": Annotated[Optional[str], _option("Model", "auto, fp16, bf16, fp32, or fp8 on GPUs that have it.")],
    "compile": Annotated[Optional[str], _option("Model", "torch.compile: auto (on a GPU, for long runs), on or off.")],
    "reference": Annotated[
        Optional[bool],
        _option("Model", "Slow and exact: open_clip's own transform and fp32; EXIF ignored, as there.", "--reference"),
    ],
    "device": Annotated[Optional[str], _option("Model", "auto, cpu, cuda, or cuda:N for one GPU.")],
    "batch_size": Annotated[Optional[int], _option("Model", "Images in a batch.")],
    "root": Annotated[
        Optional[str], _option("Input", "Folder or url that a manifest's paths are relative to and may not leave.")
    ],
    "all_files": Annotated[
        Optional[bool], _option("Input", "Take every file of a folder, whatever its suffix.", "--all-files")
    ],
    "uri_column": Annotated[Optional[str], _option("Input", "Column of a manifest that names the images.")],
    "no_header": Annotated[
        Optional[bool], _option("Input", "Take the first line of CSV and TSV files as a row, too.", "--no-header")
    ],
    "image_column": Annotated[Optional[str], _option("Input", "Column of a table that holds the images' bytes.")],
    "columns": Annotated[
        Optional[list[str]],
        _option("Input", "Carry only this column of the input to the output (repeatable, or a,b,c; none: '')."),
    ],
    "limit": Annotated[Optional[int], _option("Input", "Take only the first N rows.")],
    "decoder": Annotated[Optional[str], _option("Images", "auto, dali, torchvision, pil or open_clip.")],
    "orientation": Annotated[
        Optional[str], _option("Images", "upright: follow EXIF; stored: ignore it, as open_clip does.")
    ],
    "jpeg_scale": Annotated[
        Optional[str], _option("Images", "full; or reduced: decode big JPEGs at 1/2, 1/4 or 1/8, which is faster.")
    ],
    "hw_decoder_load": Annotated[
        Optional[float], _option("Images", "Share of JPEGs for the GPU's JPEG engines, 0 to 1; default: DALI's.")
    ],
    "cpu_share": Annotated[
        Optional[float], _option("Images", "Share of images that CPU cores decode while DALI does the others.")
    ],
    "decode_threads": Annotated[Optional[int], _option("Images", "Threads that decode (default: one a core).")],
    "max_pixels": Annotated[Optional[int], _option("Images", "Larger images get status too_large.")],
    "max_bytes": Annotated[Optional[int], _option("Images", "Larger files get status too_large.")],
    "read_threads": Annotated[Optional[int], _option("Images", "Files read at once (default 16; remote 64).")],
    "read_timeout": Annotated[Optional[float], _option("Images", "Seconds until a file that hangs is given up.")],
    "read_retries": Annotated[Optional[int], _option("Images", "Further tries after an I/O error.")],
    "decode_timeout": Annotated[Optional[float], _option("Images", "Seconds for a suspect image, tried alone.")],
    "worker_timeout": Annotated[Optional[float], _option("Images", "Seconds until a silent worker is restarted.")],
    "max_bad": Annotated[Optional[str], _option("Images", "Stop when more are bad: a count, or a share as in 1%.")],
    "score": Annotated[Optional[str], _option("Output", "auto (as trained), softmax, sigmoid or cosine.")],
    "layout": Annotated[Optional[str], _option("Output", "list: all scores in one column; wide: one each; top-k.")],
    "top_k": Annotated[Optional[int], _option("Output", "Write the K best labels instead of all scores.")],
    "scores_dtype": Annotated[Optional[str], _option("Output", "float32 or float16.")],
    "compression": Annotated[Optional[str], _option("Output", "zstd, lz4, snappy, gzip or none.")],
    "embeddings": Annotated[Optional[bool], _option("Output", "Also write each image's embedding.", "--embeddings")],
    "shard_size": Annotated[Optional[int], _option("Output", "Rows in a part file; default: about a minute of work.")],
    "engine": Annotated[
        Optional[str],
        _option("Machines", "local, or ray: on the Ray cluster of RAY_ADDRESS, or else one on this machine."),
    ],
    "gpus": Annotated[Optional[str], _option("Machines", "all, or numbers as in 0,1; default: all that are visible.")],
    "workers": Annotated[Optional[int], _option("Machines", "Worker processes on a CPU, or on a Ray cluster.")],
    "cpus_per_worker": Annotated[
        Optional[int], _option("Machines", "Cores that a worker asks a Ray cluster for; default: a node's, or a GPU's.")
    ],
    "rank": Annotated[
        Optional[int], _option("Machines", "Which of --world-size processes this is, from 0; default: as Slurm says.")
    ],
    "world_size": Annotated[Optional[int], _option("Machines", "How many processes share the run.")],
    "shards": Annotated[Optional[str], _option("Machines", "Do only these: 3,5-9, or a FILE of such numbers.")],
    "profile": Annotated[
        Optional[str], _option("Machines", "Write a Chrome trace of the first batches to this FILE (one a worker).")
    ],
    "config": Annotated[
        Optional[Path], typer.Option("--config", "-c", help="TOML file of settings; flags win over it.")
    ],
}


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` all options of `SETTINGS`; it gets them as one `Settings`, without inputs where none is given."""
    return _taking(command, "settings", {"inputs": Input, **SETTINGS}, _settings)


def takes_some(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings; it gets those that are given as a dict `given`, with those of
    `config`, if that is among them, below."""
    options = {"inputs": Input, **SETTINGS}
    return lambda command: _taking(command, "given", {name: options[name] for name in names}, _given)


def _taking(
    command: Callable[..., None], name: str, options: dict[str, Any], make: Callable[[dict[str, Any]], Any]
) -> Callable[..., None]:
    """`command` with `options` in place of its parameter `name`, which it gets as `make` makes it of them."""
    own = inspect.signature(command, eval_str=True)

    def called(**values: Any) -> None:
        made = make({option: values.pop(option) for option in options})
        command(**{name: made}, **values)

    given = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for option, annotation in options.items()
    ]
    arguments = [p for p in given if p.annotation is Input]
    parameters = [*arguments, *(own.parameters[p] for p in own.parameters if p != name)]
    parameters += [p for p in given if p not in arguments]
    called.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def _given(options: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in options.items() if value not in (None, [])}
    config = values.pop("config", None)
    if "columns" in values:
        values["columns"] = ",".join(values["columns"])
    return read_toml(config) | values if config else values


def _settings(options: dict[str, Any]) -> Settings:
    values = _given(options)
    if not values.get("inputs"):
        fixed = [name for name in values if name not in ANEW]
        if fixed:
            raise InputError(
                f"no INPUT: name a folder, image files, a .txt manifest, or - (given: {', '.join(fixed)}); without "
                "one, the run in --out goes on with the settings that it has"
            )
    return from_flat(values)
