"""What the commands share: arguments, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clipbatch.runs.report import Report

_log = {"format": "text"}


def logs_json() -> bool:
    """Whether this invocation was asked for --log-format json."""
    return _log["format"] == "json"


def _choose_log(chosen: str) -> str:
    if chosen not in ("text", "json"):
        raise typer.BadParameter(f"{chosen!r} is neither text nor json")
    _log["format"] = chosen
    return chosen


LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        help="text, or json: progress, messages and the error as JSON lines on standard error, for log collectors.",
        callback=_choose_log,
        is_eager=True,  # so that wrong settings are told in the same way
    ),
]
RunDirectory = Annotated[str, typer.Argument(help="A run directory.", metavar="RUN")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; errors only.")]


def show(made: Report, out: str, quiet: bool, as_json: bool) -> None:
    """The end of a run: its report, or a summary of it."""
    from clipbatch.runs import report

    if as_json:
        print(json.dumps(made, indent=2))
    elif not quiet:
        print(report.text(out, made))


def print_facts(found: Mapping[str, object], as_json: bool) -> None:
    """`found` as lines of name and value, or as JSON."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:14} {json.dumps(value) if isinstance(value, dict) else value}")
