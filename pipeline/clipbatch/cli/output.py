"""Arguments and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipbatch.storage.atomic import finite

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


def json_text(value: Any, *, indent: int | None = 2, ensure_ascii: bool = True) -> str:
    """`value` as JSON that strict readers take: null for NaN and infinite numbers."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def show(report: Report, out: str, quiet: bool, as_json: bool) -> None:
    """Print the report of a run, as JSON or in words."""
    from clipbatch.runs import report_text

    if as_json:
        print(json_text(report))
    elif not quiet:
        print(report_text.text(out, report))


def print_facts(facts: Mapping[str, object], as_json: bool) -> None:
    """Print `facts` as lines of name and value, or as JSON."""
    if as_json:
        print(json_text(facts))
        return
    for name, value in facts.items():
        print(f"{name:14} {json_text(value, indent=None) if isinstance(value, dict) else value}")
