"""The command that keeps a model loaded."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Optional

import typer

from clipbatch.cli.options import takes_some
from clipbatch.cli.output import Quiet
from clipbatch.cli.run import PANEL
from clipbatch.config import SettingValues, from_flat, models
from clipbatch.errors import InputError
from clipbatch.stages import fast_import

app = typer.Typer()
_MODEL = ("labels", "template", "model", "pretrained", "precision", "device", "batch_size", "config")
_INPUT = (
    *("root", "uri_column", "no_header", "image_column", "columns"),
    *("decoder", "orientation", "background", "max_pixels"),
)
_READ = ("max_bytes", "read_threads", "read_timeout", "read_retries", "max_refused")
_OUTPUT = ("score", "layout", "top_k", "scores_dtype", "compression", "embeddings", "shard_size")


@app.command("serve", rich_help_panel=PANEL)
@takes_some(*_MODEL, *_INPUT, *_READ, *_OUTPUT)
def serve_command(
    values: SettingValues,
    *,
    spool: Annotated[
        Optional[str], typer.Argument(metavar="SPOOL", help="A folder: manifests dropped into SPOOL/in/ are labelled.")
    ] = None,
    http: Annotated[
        Optional[str], typer.Option("--http", help="HOST:PORT, or PORT on loopback, for POST /classify.")
    ] = None,
    max_requests: Annotated[int, typer.Option(help="Requests taken at a time; more get 429.")] = 64,
    max_images: Annotated[int, typer.Option(help="Images in a request.")] = 256,
    max_body_mib: Annotated[int, typer.Option(help="MiB of a request.")] = 32,
    quiet: Quiet = False,
) -> None:
    """Keep a model loaded, and label what is dropped into a folder or sent over HTTP, until a signal ends it.

    Example: clipbatch serve /var/spool/clipbatch --labels labels.txt --http 127.0.0.1:8000 --root /data/photos
    """
    os.getcwd()  # fails where it has been deleted, in which torch cannot be loaded
    settings = from_flat(values)
    try:
        with fast_import.fast_imports(transformers=models.wants_transformers(settings.model.model)):
            from clipbatch.serving.http import Limits
            from clipbatch.serving.service import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise InputError(f"serve needs {error.name}: pip install 'clipbatch[serve]'") from error
    limits = Limits(requests=max_requests, images=max_images, body_mib=max_body_mib)
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    serve(settings, spool=spool, http=http, limits=limits, say=say)
    sys.stderr.flush()
    os._exit(0)  # tidying torch away takes seconds, and a thread may hang in a file that never answers
