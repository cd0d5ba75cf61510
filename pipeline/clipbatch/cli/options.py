"""The settings as options of the command line, shared by every command that plans a run."""

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
_PANELS = ("Labels", "Model", "Input", "Images", "Output", "Machines")
_COMPLETIONS = {"labels": complete_labels, "model": complete_models}


def _options() -> dict[str, Any]:
    """An option for each setting, by name, panel by panel."""
    options: dict[str, Any] = {}
    for name, (field, kind) in declared().items():
        if not field.metadata["panel"]:
            continue  # not for users to choose
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
            help="Slow and exact: open_clip's own transform and fp32; EXIF ignored, as there.",
            rich_help_panel="Model",
        ),
    ]
    options["config"] = Annotated[
        Optional[Path], typer.Option("--config", "-c", help="TOML file of settings; flags win over it.")
    ]
    panels = {name: _PANELS.index(o.__metadata__[0].rich_help_panel) for name, o in options.items() if name != "config"}
    return dict(sorted(options.items(), key=lambda entry: panels.get(entry[0], len(_PANELS))))


def _plain(kind: Any) -> Any:
    """The type that an option of a setting of type `kind` takes: choices are texts, tuples are options that repeat."""
    if isinstance(kind, types.UnionType):  # X | None
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return list[str]
    return str if typing.get_origin(kind) is Literal else kind


SETTINGS = _options()


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` all options of `SETTINGS`; it gets them as one `Settings`, without inputs where none is given."""
    return _taking(command, "settings", {"inputs": Input, **SETTINGS}, _settings)


def takes_some(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings; it gets those that are given as a dict `given`, with those of
    `config`, if that is among them, below."""
    options = {"inputs": Input, **SETTINGS}
    return lambda command: _taking(command, "given", {name: options[name] for name in names}, _given)


def _taking(
    command: Callable[..., None], name: str, options: dict[str, Any], make: Callable[[SettingValues], Any]
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


def _given(options: SettingValues) -> SettingValues:
    values = {name: value for name, value in options.items() if value not in (None, [])}
    config = values.pop("config", None)
    if "columns" in values:
        values["columns"] = ",".join(values["columns"])
    return read_toml(config) | values if config else values


def _settings(options: SettingValues) -> Settings:
    values = _given(options)
    if not values.get("inputs"):
        anew = names_of("invocation", "worker", "placement")
        fixed = [name for name in values if name not in anew]
        if fixed:
            raise InputError(
                f"no INPUT: name a folder, image files, a .txt manifest, or - (given: {', '.join(fixed)}); without "
                "one, the run in --out goes on with the settings that it has"
            )
    return from_flat(values)
