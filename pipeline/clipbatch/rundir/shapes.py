"""Check values from JSON files against a shape, and name the first place that does not fit.

A shape looks like this:

    {"rows": SIZE, "names": Every(list, TEXT), "duplicates": (COUNT, NOTHING)}

A mapping is an object with at least these keys. A tuple is a choice of kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

# The largest number that we accept. JSON, floats and Parquet all hold it exactly.
MAX = 2**53


class DamagedRecordError(ValueError):
    """A file does not hold what was written. The message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Values of a type for which `test` is true. Never matches a bool."""

    # What the values are, for messages.
    words: str
    type: type | tuple[type, ...]
    test: Callable[[Any], bool] = lambda _: True

    def matches(self, value: Any) -> bool:
        return isinstance(value, self.type) and not isinstance(value, bool) and self.test(value)


@dataclass(frozen=True, slots=True)
class Every:
    """A list, or an object with any keys, of at least `minimum` values of the shape `entry`."""

    type: type
    entry: Shape
    minimum: int = 0


# A kind, a choice of kinds, a list or an object of values of one shape, or an object with certain keys. None: anything.
Shape = Union[Kind, tuple[Kind, ...], Every, Mapping[str, "Shape"], None]


def integers(minimum: int, maximum: int) -> Kind:
    """Whole numbers from `minimum` to `maximum`."""
    return Kind(f"a whole number from {minimum} to {maximum}", int, lambda value: minimum <= value <= maximum)


TEXT = Kind("a text", str)
NUMBER = Kind("a number", (int, float), lambda value: -MAX <= value <= MAX)
DIGEST = Kind("a digest", str, lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None)
NOTHING = Kind("null", type(None))
COUNT, SIZE = integers(0, MAX), integers(1, MAX)
TEXTS = Every(list, TEXT, 1)


def check(value: Any, shape: Shape, where: str = "") -> None:
    """Raises: DamagedRecordError naming the first part of `value` that does not have the shape.

    where: how messages name `value`.
    """
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
        if not isinstance(value, (dict, list)) or type(value) is not shape.type or len(value) < shape.minimum:
            kind = "an object" if shape.type is dict else "a list"
            raise DamagedRecordError(f"{where} is {_short(value)}, not {kind} of {shape.minimum} or more")
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            check(entry, shape.entry, f"{where}[{key!r}]{'.' if isinstance(shape.entry, Mapping) else ''}")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if not any(kind.matches(value) for kind in kinds):
            words = " or ".join(kind.words for kind in kinds)
            raise DamagedRecordError(f"{where} is {_short(value)}, not {words}")


def fits(value: Any, shape: Shape) -> bool:
    """Whether `value` has the shape."""
    try:
        check(value, shape)
    except DamagedRecordError:
        return False
    return True


def name_of(value: Any) -> str:
    """The type of a JSON value, in words."""
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "a number")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
