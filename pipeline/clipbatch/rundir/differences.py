"""Says in words how two records of a run differ, as the settings of a run and those that a command gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Values up to this many characters are shown whole where they differ; of lists that are longer, this many entries.
_MAX_WHOLE = 2000
_MAX_ENTRIES = 20


def difference(frozen: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """The first field that differs, with both values, as text; None if all are equal. Missing and None are equal."""
    for name in sorted(frozen.keys() | current.keys()):
        before, now = frozen.get(name), current.get(name)
        if _text(before) != _text(now):
            return _difference(name, before, now)
    return None


def _difference(name: str, before: Any, now: Any) -> str:
    """How the values of a field differ: both whole; if they are long, that part of them which differs, whole."""
    whole = _text(before), _text(now)
    if max(map(len, whole)) > _MAX_WHOLE:
        if isinstance(before, dict) and isinstance(now, dict):
            return f"{name}.{difference(before, now)}"
        if isinstance(before, list) and isinstance(now, list):
            if len(before) != len(now):
                return f"{name} has {len(now)} entries now and {len(before)} there; {_entries(before, now)}"
            pairs = enumerate(zip(before, now, strict=True))
            at = next(at for at, (there, new) in pairs if _text(there) != _text(new))
            return _difference(f"{name}[{at}]", before[at], now[at])
    return f"{name} is {whole[1]} now and {whole[0]} there"


def _entries(before: list[Any], now: list[Any]) -> str:
    """The entries that only one of two lists has, the first few of them."""
    there, new = (list(map(_text, values)) for values in (before, now))
    texts = []
    for where, values, others in (("only now", new, set(there)), ("only there", there, set(new))):
        if alone := [value for value in values if value not in others]:
            more = f" and {len(alone) - _MAX_ENTRIES} more" if len(alone) > _MAX_ENTRIES else ""
            texts.append(f"{where}: {', '.join(alone[:_MAX_ENTRIES])}{more}")
    return "; ".join(texts) or "some occur more often"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
