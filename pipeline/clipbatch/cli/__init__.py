"""The command line: parse, build settings, call one function, map errors to exit codes. No work is done here."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from clipbatch import __version__
from clipbatch.cli import export, lists, machine, results, run, serve, submit
from clipbatch.cli.output import logs_json
from clipbatch.cli.standard_streams import StandardStreams
from clipbatch.config.memory_limits import check_memory, too_little_memory
from clipbatch.errors import ClipbatchError, InputError
from clipbatch.workers import signals

EXIT_CODES = """\
Exit codes: 0 done (bad images included), 2 usage, 3 input or settings refused, 4 more bad images than --max-bad,
5 files of the run are damaged or gone, or doctor found a failure, 6 another process is at the same dataset or spool,
75 interrupted (the same command resumes), 1 a bug."""

app = typer.Typer(
    name="clipbatch",
    help="Label millions of images with an OpenCLIP model; leave Parquet that can be queried at once.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in (run, serve, results, machine, lists):
    app.add_typer(_commands.app)
app.add_typer(submit.app, name="submit", rich_help_panel=run.PANEL)
app.add_typer(export.app, name="export", rich_help_panel=run.PANEL)


def _version(wanted: bool) -> None:
    if wanted:
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
    """Run the command line; end the process with the exit code of what happened."""
    streams = StandardStreams()
    code = [1]  # of an exception that is a bug, whose trace Python prints
    atexit.register(_leave, streams, code)  # the first to be registered is the last to be called
    code[0] = exit_code(_run)
    sys.exit(code[0])


def _run() -> None:
    signals.install()
    check_memory()
    app()


def exit_code(work: Callable[[], object]) -> int:
    """Do `work`, say what went wrong, and return the exit code that stands for it."""
    try:
        work()
    except ClipbatchError as error:
        return _refused(error)
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        return _refused(refusal)
    except SystemExit as asked:
        return asked.code if isinstance(asked.code, int) else 0 if asked.code is None else 1
    return 0


def _refusal(error: Exception) -> InputError | None:
    """What is wrong around this process, where `error` comes of that."""
    from clipbatch.workers.child import working_folder

    if isinstance(error, FileNotFoundError) and working_folder() is not None:
        return InputError("the working folder has been deleted: cd to one that is there, and try again")
    return too_little_memory(error)


def _refused(error: ClipbatchError) -> int:
    if logs_json():
        from clipbatch.workers.progress import log_json

        log_json("error", exit_code=error.exit_code, message=str(error))
    else:
        print(f"clipbatch: {error}", file=sys.stderr)
    return error.exit_code


def _leave(streams: StandardStreams, code: list[int]) -> NoReturn:
    """End the process at once: a thread of Arrow's that lets go of a Python object while the interpreter is taken down
    aborts it (apache/arrow#34314), and a command that did its work would exit with 134."""
    os._exit(streams.close(code[0]))
