"""Arguments and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clipbatch.runs.report import Report

# The format of the log of this invocation.
_log = {"format": "text"}


def reset() -> None:
    """Set the log to its default. For a process that runs several command lines."""
    _log["format"] = "text"


def logs_json() -> bool:
    """Whether this invocation has --log-format json."""
    return _log["format"] == "json"


def _set_log_format(value: str) -> str:
    if value not in ("text", "json"):
        raise typer.BadParameter(f"{value!r} is neither text nor json")
    _log["format"] = value
    return value


LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        help="text, or json: progress, messages and the error as JSON lines on standard error, for log collectors.",
        callback=_set_log_format,
        is_eager=True,  # so that errors in other options are logged in this format too
    ),
]
RunDirectory = Annotated[str, typer.Argument(help="A run directory.", metavar="RUN")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no summary, only errors.")]


def show(report: Report, out: str, quiet: bool, as_json: bool) -> None:
    """Print the report of a run, as JSON or in words."""
    from clipbatch.runs import report_text

    if as_json:
        print(json.dumps(report, indent=2))
    elif not quiet:
        print(report_text.text(out, report))


def print_facts(facts: Mapping[str, object], as_json: bool) -> None:
    """Print `facts` as lines of name and value, or as JSON."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:14} {json.dumps(value) if isinstance(value, dict) else value}")
