"""Turns the settings into options for the command line. All commands that need settings share them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from clipbatch.config import Settings, SettingValues, declared, from_flat, names_of, read_toml
from clipbatch.errors import InputError


def complete_models(start: str) -> list[str]:
    """Names of models, for completion in the shell."""
    from clipbatch.config import models

    return [name for name in models.names() if name.startswith(start)]


def complete_labels(start: str) -> list[str]:
    """Names of shipped label sets, for completion in the shell."""
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
    str, typer.Option("--out", "-o", help="The run directory, or a URL in an object store. An existing run is resumed.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run in --out and start again.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
_PANELS = ("Labels", "Model", "Input", "Images", "Output", "Machines")
_COMPLETIONS = {"labels": complete_labels, "model": complete_models}


def _options() -> dict[str, Any]:
    """The options for all settings by name, sorted by panel."""
    options: dict[str, Any] = {}
    for name, (field, kind) in declared().items():
        if not field.metadata["panel"]:
            continue  # users do not choose this one
        flags = [f"--{name.replace('_', '-')}"] if _plain(kind) is bool or field.metadata["short"] else []
        flags += [field.metadata["short"]] if field.metadata["short"] else []
        option = typer.Option(
            *flags,
            help=field.metadata["help"],
            rich_help_panel=field.metadata["panel"],
            autocompletion=_COMPLETIONS.get(name),
        )
        options[name] = Annotated[Optional[_plain(kind)], option]
    options["reference"] = Annotated[
        Optional[bool],
        typer.Option(
            "--reference",
            help="Slow and exact: open_clip's own transform and fp32; ignores EXIF, as open_clip does.",
            rich_help_panel="Model",
        ),
    ]
    options["config"] = Annotated[
        Optional[Path], typer.Option("--config", "-c", help="TOML file of settings; options override it.")
    ]
    panels = {name: _PANELS.index(o.__metadata__[0].rich_help_panel) for name, o in options.items() if name != "config"}
    return dict(sorted(options.items(), key=lambda entry: panels.get(entry[0], len(_PANELS))))


def _plain(kind: Any) -> Any:
    """The type of the option for a setting of type `kind`: str for choices, a list for tuples (repeated options)."""
    if isinstance(kind, types.UnionType):  # X | None
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return list[str]
    return str if typing.get_origin(kind) is Literal else kind


SETTINGS = _options()


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` all options of `SETTINGS`. It receives them as `settings`, one `Settings`."""
    return _with_options(command, "settings", {"inputs": Input, **SETTINGS}, _settings)


def takes_some(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings. It receives those that the user gave as a dict `values`; the
    contents of a `config` file are in it too, and options override them."""
    options = {"inputs": Input, **SETTINGS}
    return lambda command: _with_options(command, "values", {name: options[name] for name in names}, _values)


def _with_options(
    command: Callable[..., None], name: str, options: dict[str, Any], make: Callable[[SettingValues], Any]
) -> Callable[..., None]:
    """`command` with `options` instead of its parameter `name`, for which it receives the result of `make`."""
    own = inspect.signature(command, eval_str=True)

    def wrapper(**values: Any) -> None:
        argument = make({option: values.pop(option) for option in options})
        command(**{name: argument}, **values)

    added = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for option, annotation in options.items()
    ]
    arguments = [p for p in added if p.annotation is Input]
    parameters = [*arguments, *(own.parameters[p] for p in own.parameters if p != name)]
    parameters += [p for p in added if p not in arguments]
    wrapper.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


def _values(options: SettingValues) -> SettingValues:
    values = {name: value for name, value in options.items() if value not in (None, [])}
    config = values.pop("config", None)
    if "columns" in values:
        values["columns"] = ",".join(values["columns"])
    return read_toml(config) | values if config else values


def _settings(options: SettingValues) -> Settings:
    values = _values(options)
    if not values.get("inputs"):
        changeable = names_of("invocation", "worker", "placement")
        fixed = [name for name in values if name not in changeable]
        if fixed:
            raise InputError(
                f"no INPUT: name a folder, image files, a .txt manifest, or - (given: {', '.join(fixed)}); without "
                "an INPUT, the run in --out continues with the settings that it has"
            )
    return from_flat(values)
