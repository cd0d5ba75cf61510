"""The command line: parses options, builds settings, calls one function, and maps errors to exit codes."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from clipbatch import __version__
from clipbatch.cli import export, heads, lists, machine, results, run, serve, submit
from clipbatch.cli.output import logs_json
from clipbatch.cli.standard_streams import StandardStreams
from clipbatch.config.memory_limits import check_memory, too_little_memory
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.workers import signals

EXIT_CODES = """\
Exit codes: 0 done (bad images included), 2 usage, 3 input or settings refused, 4 more bad images than --max-bad, or
nothing could be labelled, 5 files of the run are damaged or missing, or doctor found a failure, 6 another process uses
the same dataset or spool, 75 interrupted, or a store refuses every read (the same command resumes), 1 a bug."""

app = typer.Typer(
    name="clipbatch",
    help="Label millions of images with an OpenCLIP model; write Parquet files that you can query at once.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in (run, serve, results, heads, machine, lists):
    app.add_typer(_commands.app)
app.add_typer(submit.app, name="submit", rich_help_panel=run.PANEL)
app.add_typer(export.app, name="export", rich_help_panel=run.PANEL)


def _version(value: bool) -> None:
    if value:
        print(f"clipbatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line, then end the process with the exit code of the result."""
    streams = StandardStreams()
    code = [1]  # kept if an exception is a bug, whose traceback Python prints
    atexit.register(_exit, streams, code)  # functions are called in reverse order, so this one is called last
    code[0] = exit_code(_run)
    sys.exit(code[0])


def _run() -> None:
    signals.install()
    check_memory()
    app()


def exit_code(work: Callable[[], object]) -> int:
    """Call `work`, print its error if it fails, and return the exit code of the result."""
    try:
        work()
    except ClipbatchError as error:
        return _report_error(error)
    except Exception as error:
        input_error = _cause_in_environment(error)
        if input_error is None:
            raise
        return _report_error(input_error)
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else 0 if request.code is None else 1
    return 0


def _cause_in_environment(error: Exception) -> InputError | None:
    """The problem in the environment of this process that has caused `error`, if there is one."""
    from clipbatch.workers.child import working_folder

    if isinstance(error, FileNotFoundError) and working_folder() is not None:
        return InputError("the working folder has been deleted: cd to an existing folder, and try again")
    return too_little_memory(error)


def _report_error(error: ClipbatchError) -> int:
    if logs_json():
        from clipbatch.workers.progress import log_json

        log_json("error", "error", exit_code=error.exit_code, message=str(error))
    else:
        print(f"clipbatch: {error}", file=sys.stderr)
    return error.exit_code


def _exit(streams: StandardStreams, code: list[int]) -> NoReturn:
    """End the process at once. If Python shut down as usual, a thread of Arrow's that releases a Python object could
    abort the process (apache/arrow#34314), and a command that did its work would exit with 134."""
    os._exit(streams.close(code[0]))
