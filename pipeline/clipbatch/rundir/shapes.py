"""What a value that was read from JSON has to be, and the first place in it that is not so, in words.

    {"rows": SIZE, "names": Every(list, TEXT), "duplicates": (COUNT, NOTHING)}

A mapping stands for an object that has these keys at least, a tuple for one kind of several. Knows no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

# The largest number that is taken; what JSON, floats and Parquet all hold.
MOST = 2**53


class DamagedRecordError(ValueError):
    """A file that does not hold what was written; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Values of a type for which `holds` is true; never true or false themselves."""

    # What they are, for messages.
    words: str
    type: type | tuple[type, ...]
    holds: Callable[[Any], bool] = lambda _: True

    def takes(self, value: Any) -> bool:
        return isinstance(value, self.type) and not isinstance(value, bool) and self.holds(value)


@dataclass(frozen=True, slots=True)
class Every:
    """Lists, or objects of any keys, with `least` values at least, each of them as `entry` says."""

    type: type
    # None: anything.
    entry: Shape
    least: int = 0


# What a value has to be: of a kind, a list or an object of such, one of several, an object with these keys; None:
# anything.
Shape = Union[Kind, tuple[Kind, ...], Every, Mapping[str, "Shape"], None]


def integers(least: int, most: int) -> Kind:
    """Whole numbers from `least` to `most`."""
    return Kind(f"a whole number from {least} to {most}", int, lambda value: least <= value <= most)


TEXT = Kind("a text", str)
NUMBER = Kind("a number", (int, float), lambda value: -MOST <= value <= MOST)
DIGEST = Kind("a digest", str, lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None)
NOTHING = Kind("null", type(None))
COUNT, SIZE = integers(0, MOST), integers(1, MOST)
TEXTS = Every(list, TEXT, 1)


def check(value: Any, shape: Shape, where: str = "") -> None:
    """where: how messages name `value`. Raises: DamagedRecordError naming what in `value` is not as `shape` says."""
    if shape is None:
        return
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            raise DamagedRecordError(f"{where or 'it'} is {name_of(value)}, not an object")
        for name, each in shape.items():
            if name not in value:
                raise DamagedRecordError(f"{where}{name} is missing")
            check(value[name], each, f"{where}{name}")
    elif isinstance(shape, Every):
        if not isinstance(value, (dict, list)) or type(value) is not shape.type or len(value) < shape.least:
            kind = "an object" if shape.type is dict else "a list"
            raise DamagedRecordError(f"{where} is {_short(value)}, not {kind} of {shape.least} or more")
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            check(entry, shape.entry, f"{where}[{key!r}]{'.' if isinstance(shape.entry, Mapping) else ''}")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if not any(kind.takes(value) for kind in kinds):
            words = " or ".join(kind.words for kind in kinds)
            raise DamagedRecordError(f"{where} is {_short(value)}, not {words}")


def fits(value: Any, shape: Shape) -> bool:
    """Whether `value` is as `shape` says."""
    try:
        check(value, shape)
    except DamagedRecordError:
        return False
    return True


def name_of(value: Any) -> str:
    """The kind of a JSON value, in words."""
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "a number")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
