"""The command that keeps a model loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

from clipbatch.cli.options import takes_some
from clipbatch.cli.output import Quiet
from clipbatch.cli.run import PANEL
from clipbatch.config import Settings, SettingValues, from_flat, models
from clipbatch.errors import InputError, InterruptedRunError
from clipbatch.stages import fast_import
from clipbatch.workers import signals
from clipbatch.workers.progress import log_line

app = typer.Typer()
_MODEL = (
    *("labels", "template", "head", "head_anyway"),
    *("model", "pretrained", "precision", "device", "batch_size", "config"),
)
_INPUT = (
    *("root", "uri_column", "no_header", "image_column", "columns", "caption_column"),
    *("decoder", "orientation", "background", "max_pixels"),
)
_READ = ("max_bytes", "read_threads", "read_timeout", "read_retries", "max_refused")
_OUTPUT = ("score", "layout", "top_k", "scores_dtype", "compression", "embeddings", "shard_size")
_TRUST, _LIMITS = "Access", "Limits of HTTP"


def _trust(*names: str, text: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_TRUST)


def _limit(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=_LIMITS)


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
    only_own_files: Annotated[
        bool, _trust("--only-own-files", text="Take only jobs whose files all belong to this service's user.")
    ] = False,
    allow_host: Annotated[
        Optional[list[str]], _trust("--allow-host", text="A further name for requests to give as Host; repeatable.")
    ] = None,
    token_file: Annotated[
        Optional[str], _trust("--token-file", text="FILE with the bearer token that POST /classify has to bring.")
    ] = None,
    no_token: Annotated[
        bool, _trust("--no-token", text="Ask for no token beyond loopback: a proxy before it asks for a password.")
    ] = False,
    max_requests: Annotated[int, _limit("Requests answered at a time; more get 429.")] = 64,
    max_images: Annotated[int, _limit("Images in a request.")] = 256,
    max_body_mib: Annotated[int, _limit("MiB of a request's body.")] = 32,
    max_header_kib: Annotated[int, _limit("KiB of a request's headers.")] = 32,
    max_connections: Annotated[int, _limit("Connections open at a time.")] = 512,
    max_json_depth: Annotated[int, _limit("Objects and lists inside of one another in a JSON body.")] = 16,
    max_megapixels: Annotated[int, _limit("Megapixels of the images of all requests that are being answered.")] = 512,
    body_time: Annotated[float, _limit("Seconds for a body to arrive.")] = 30.0,
    idle_time: Annotated[float, _limit("Seconds for headers to arrive, and for an answer to be taken.")] = 10.0,
    grace_time: Annotated[float, _limit("Seconds to answer requests in hand when the service ends.")] = 30.0,
    quiet: Quiet = False,
) -> None:
    """Keep a model loaded, and label what is dropped into a folder or sent over HTTP, until a signal ends it.

    Example: clipbatch serve /var/spool/clipbatch --labels labels.txt --http 127.0.0.1:8000 --root /data/photos
    """
    say: Callable[[str], None] = (lambda text: None) if quiet else log_line
    try:
        _serve(
            from_flat(values),
            limits={
                "requests": max_requests,
                "images": max_images,
                "body_mib": max_body_mib,
                "header_kib": max_header_kib,
                "connections": max_connections,
                "json_depth": max_json_depth,
                "megapixels": max_megapixels,
                "body_time": body_time,
                "idle_time": idle_time,
                "grace_time": grace_time,
            },
            spool=spool,
            http=http,
            say=say,
            only_own_files=only_own_files,
            allow_hosts=allow_host or (),
            token_file=token_file,
            no_token=no_token,
        )
    except InterruptedRunError:  # a wanted end here too, as it is later
        say(f"ended by {signals.received()} before the model was loaded: nothing had been taken")
    sys.stderr.flush()
    os._exit(0)  # unloading torch takes seconds, and a thread may hang in a file that never answers


def _serve(settings: Settings, *, limits: dict[str, Any], **how: Any) -> None:
    """Load the libraries, then serve as `serving.service.serve` does. limits: the fields of `Limits`."""
    os.getcwd()  # fails where the folder has been deleted, in which torch cannot be loaded
    try:
        with fast_import.fast_imports(transformers=models.wants_transformers(settings.model.model)):
            from clipbatch.serving.http import Limits
            from clipbatch.serving.service import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "httptools", "python_multipart"):
            raise
        raise InputError(f"serve needs {error.name}: pip install 'clipbatch[serve]'") from error
    serve(settings, limits=Limits(**limits), **how)
