"""Numbers as people read them: counts, shares, rates, durations. And what is said of bad rows."""

from __future__ import annotations

from collections.abc import Mapping

# A share of bad rows above this is said before all else.
MANY_BAD = 0.05


def number(value: float) -> str:
    """A count with separators for thousands, or a measure with three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """A percentage. It is never 0% for a part above 0, nor 100% for less than the whole."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1%"
    if 99.9 < percent < 100:
        return "over 99.9%"
    return f"{percent:.1f}%".replace(".0%", "%")


def bad_share(counts: Mapping[str, int]) -> str:
    """The share of bad rows if it is worth saying first, as in `12.5% of the images are bad`; else empty.

    counts: rows by status.
    """
    total = sum(counts.values())
    bad = total - counts.get("ok", 0)
    return f"{share(bad, total)} of the images are bad" if bad > MANY_BAD * total else ""


def rate(value: float) -> str:
    """A rate, with a decimal or two digits if it is low: `57`, `3.0`, `0.042`."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def seconds(value: float) -> str:
    """A duration in the two largest units that matter."""
    if value < 90:
        return f"{value:.3g} s"
    whole = round(value)
    long, size, short, part = next(units[1:] for units in _UNITS if whole < units[0])
    rest = whole % size // part
    return f"{whole // size} {long}" + (f" {rest} {short}" if rest else "")


# Durations below the first number of seconds use these two units, each with its length in seconds.
_UNITS: tuple[tuple[float, str, int, str, int], ...] = (
    (5400, "min", 60, "s", 1),
    (48 * 3600, "h", 3600, "min", 60),
    (float("inf"), "d", 86400, "h", 3600),
)
