"""One line of `clipbatch doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, and how it is."""

    name: str
    level: Level
    """warning: a run works, but slower or without something. failure: a run with these settings does not work."""
    text: str
    remedy: str = ""
    """What to do; never empty where `level` is not ok."""

    def __post_init__(self) -> None:
        assert (self.level == "ok") == (not self.remedy), self


def lines(found: list[Finding]) -> str:
    """`found` for a terminal, remedies below what they mend."""
    shown = []
    for one in found:
        shown.append(f"{one.level:8} {one.name:14} {one.text}")
        if one.remedy:
            shown.append(f"{'':8} {'':14} -> {one.remedy}")
    return "\n".join(shown)
