"""Write docs/reference/options.md from the command line's own options, so that the page cannot go stale.

    python scripts/options_page.py            # write the page
    python scripts/options_page.py --check    # exit code 1 if the page is not what would be written

The names, texts and groups are those that `clipbatch COMMAND --help` shows. Where an option has no default of its own,
the default of the setting of that name is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from clipbatch.cli import EXIT_CODES, app
from clipbatch.config import Settings, names_of

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
HEAD = """\
# Options

<!-- Written by scripts/options_page.py. Do not edit this page: edit the option's help text, then run `make docs`. -->

Every option of every command, as `clipbatch COMMAND --help` shows it. The settings of `clipbatch run` have three
names: `--batch-size` on the command line, `batch_size` (or `batch-size`) in a `--config` file, and `batch_size` as a
keyword of [`clipbatch.run`](python-api.md). An option on the command line wins over the file.

A setting marked *any time* may be given anew whenever you go on with a run. All others are frozen when the run is
planned: a run directory refuses other values and names the one that differs. `auto` and most defaults are resolved
when the run is planned, and `run.json` says what came out.
"""


def main() -> None:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} does not match the options of the command line: run `make docs` and commit the page")


def page() -> str:
    """The whole page in Markdown."""
    codes = " ".join(EXIT_CODES.split())
    return "\n".join([HEAD, *_sections(), f"## Exit codes\n\n{codes} More in [Exit codes](exit-codes.md).\n"])


def _sections() -> Iterator[str]:
    commands = dict(_commands(typer.main.get_command(app), "clipbatch"))
    run = {parameter.name: parameter for parameter in commands["clipbatch run"].params if parameter.name in _defaults()}
    for name, command in commands.items():
        if not hasattr(command, "commands"):
            yield _section(name, command, {} if name == "clipbatch run" else run)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each command with its full name, groups before their commands."""
    yield name, command
    for inner, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{name} {inner}")


def _section(name: str, command: Any, run: dict[str, Any]) -> str:
    """A command with its options. run: settings that `clipbatch run` explains; empty for that command itself."""
    shared, own = [], []
    for parameter in command.params:
        if parameter.name != "help":
            same = parameter.name in run and parameter.help == run[parameter.name].help
            (shared if same else own).append(parameter)
    lines = [f"## {name}", "", *_paragraphs(command.help)]
    panels: dict[str, list[Any]] = {}
    for parameter in own:
        panels.setdefault(parameter.rich_help_panel or "", []).append(parameter)
    for panel, parameters in panels.items():
        if panel:
            lines += [f"### {panel}", ""]
        lines += [*_table(parameters, scope=not run), ""]
    if run and len(shared) == len(run):
        lines += ["And all settings of [clipbatch run](#clipbatch-run).", ""]
    elif shared:
        names = ", ".join(f"`{_flags(parameter)[0]}`" for parameter in shared)
        lines += [f"And these options of [clipbatch run](#clipbatch-run): {names}.", ""]
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterable[str]:
    """A command's help, with its example as code."""
    for paragraph in text.strip().split("\n\n"):
        words = " ".join(paragraph.split())
        head, mark, example = words.partition("Example: ")
        yield f"{head}Example: `{example}`" if mark else words
        yield ""


def _table(parameters: list[Any], *, scope: bool) -> Iterator[str]:
    """scope: with a column that says whether a setting may be given anew."""
    yield "| option | default | when | what it does |" if scope else "| option | default | what it does |"
    yield "|---|---|---|---|" if scope else "|---|---|---|"
    for parameter in parameters:
        names = ", ".join(f"`{flag}`" for flag in _flags(parameter))
        when = [_when(parameter.name)] if scope else []
        yield f"| {' | '.join([names, _default(parameter), *when, _cell(parameter.help or '')])} |"


def _flags(parameter: Any) -> list[str]:
    """The names on the command line; an argument has its placeholder."""
    is_option = parameter.opts[0].startswith("-")
    return list(parameter.opts) if is_option else [parameter.metavar or parameter.name.upper()]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default if parameter.default is not None else _defaults().get(parameter.name)
    if value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _when(name: str) -> str:
    if name not in _defaults():
        return ""
    return "*any time*" if name in names_of("invocation", "worker", "placement") else "frozen"


def _defaults() -> dict[str, Any]:
    """Of every setting, by name. `inputs` is one; `reference` stands for several."""
    return {**Settings().flat(), "reference": False}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{}", "`{}`")


if __name__ == "__main__":
    main()
