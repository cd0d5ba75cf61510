"""Declare settings, and check their types and ranges when they are created.

A settings file may hold any value, so the annotations alone do not guarantee a type. This module does not know any
particular setting.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from clipbatch.errors import InputError, nearest

# The largest value of any setting. Parquet, JSON and floats all hold it exactly.
_MAX = 2**53


# When a setting may change, and who gets it:
#
# identity    It decides what the parts hold. A run with another value is another run. A setting that is added later has
#             the default None, which means "as before" and is not written.
# output      As identity, but `clipbatch rescore` may choose another value.
# frozen      Kept in `run.json`. Its effect is part of the identity in another form.
# invocation  May differ each time the run is started or resumed. A Slurm job passes it on to its tasks.
# worker      As invocation. Workers get it too.
# placement   Which devices and which part of the run this process uses. Never passed on.
Scope = Literal["identity", "output", "frozen", "invocation", "worker", "placement"]


def setting(default: Any, panel: str, scope: Scope, help_text: str, *, short: str = "") -> Any:
    """Declare a setting. panel: the heading for its option in `--help`. short: a one-letter option, as in -m."""
    return field(default=default, metadata={"panel": panel, "scope": scope, "help": help_text, "short": short})


class SettingError(InputError, ValueError):
    """The value of a setting cannot be used."""


def host_and_port(address: str, name: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, or of PORT on loopback. name: of the setting. Raises: SettingError."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise SettingError(f"{name} {address!r} is no address: use HOST:PORT, or PORT on loopback")
    return host.strip("[]") or "127.0.0.1", int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Base class of dataclasses whose values must have the annotated types. Raises SettingError if one does not."""

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for f in dataclasses.fields(self):
            _check_type(f.name, getattr(self, f.name), hints[f.name])


_hints: dict[type, dict[str, Any]] = {}


def hints_of(kind: type) -> dict[str, Any]:
    """The evaluated annotations of a class. Cached, since evaluating them takes longer than all checks together."""
    if kind not in _hints:
        _hints[kind] = typing.get_type_hints(kind)
    return _hints[kind]


def at_least(name: str, value: float | None, minimum: float, maximum: float = _MAX) -> None:
    """Raises: SettingError if `value` is below `minimum` or above `maximum`."""
    if value is not None and not minimum <= value <= maximum:
        raise SettingError(f"{name} {value} is out of range: use {minimum} or more, and {maximum} at most")


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Raises: SettingError if `value` does not have the annotated type `hint`."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if origin is Literal:
            choices = typing.get_args(option)
            if value in choices:
                return
            near = nearest(str(value), choices)
            raise SettingError(f"{name} {value!r} is not known: use one of {', '.join(choices)}.{near}")
        if origin is tuple:
            if isinstance(value, tuple) and all(isinstance(entry, str) for entry in value):
                return
        elif isinstance(value, bool):
            if option is bool:
                return
        elif isinstance(value, option) or (option is float and isinstance(value, int)):
            return
    raise SettingError(f"{name} {value!r} is of the wrong type: expected {_wording(hint)}")


def _wording(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(words.get(option, "a list of texts") for option in options if option is not types.NoneType)
