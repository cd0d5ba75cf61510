"""Check settings when they are made: types as annotated, numbers within range.

A settings file may hold anything, so annotations alone prove nothing. Knows no setting.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from clipbatch.errors import InputError, nearest

_MOST = 2**53
"""The largest number that any setting takes; what Parquet, JSON and floats all hold."""


class SettingError(InputError, ValueError):
    """A setting has a value that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A dataclass that refuses values which are not of the annotated types."""

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for f in dataclasses.fields(self):
            _check_type(f.name, getattr(self, f.name), hints[f.name])


_hints: dict[type, dict[str, Any]] = {}


def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class, evaluated once: that takes longer than all that is done with them."""
    if kind not in _hints:
        _hints[kind] = typing.get_type_hints(kind)
    return _hints[kind]


def at_least(name: str, value: float | None, least: float, most: float = _MOST) -> None:
    """Raises: SettingError where `value` is below `least` or above `most`, by default absurdly large."""
    if value is not None and not least <= value <= most:
        raise SettingError(f"{name} {value} is out of range: use {least} or more, and {most} at most")


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of the annotated type, as a TOML file may hold anything."""
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
