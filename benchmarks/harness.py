"""What the benchmarks share: rounds, spread, the machine in words, tables, dated reports, a line of JSON at the end.

Contestants take turns (A B C, A B C, ...), so that a machine that drifts (heat, neighbours, a full page cache) hits
them all alike. A ratio is taken within each round, and the median of the rounds' ratios is what counts. One full
round before the first warms up caches, threads and clocks and is thrown away. Knows nothing of images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbatch.config import hardware
from clipbatch.runs.plan import versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """For a table: `median (low-high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"

    def facts(self) -> dict[str, float]:
        """For JSON: five significant digits, since no more are meant."""
        return {name: float(f"{getattr(self, name):.5g}") for name in self.__slots__}


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of `values`, one a round."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def interleave(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contestant's figure in every round, in the order of rounds; the round that warms up is left out.

    contestants: name -> a function that does its work once and returns its figure (images/s, or seconds).
    """
    if rounds < 1:
        raise SystemExit(f"--rounds {rounds} measures nothing: use 1 or more")
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        what = f"round {number} of {rounds}" if number else "warm-up"
        for name, work in contestants.items():
            figure = work()
            print(f"  {what}: {name} {figure:.4g}", file=sys.stderr, flush=True)
            if number:
                figures[name].append(figure)
    return figures


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of the ratios `over / under`, each taken within its round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--report", type=Path, help="write a dated Markdown report here")
    return parser


def machine() -> dict[str, Any]:
    """The machine, the date, the versions, and the load that was on it before the benchmark began."""
    load_1min = round(os.getloadavg()[0], 2)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"date": date, **hardware.describe(), "load_1min": load_1min, "versions": versions()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also aligned for a terminal: the first column to the left, the others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(line(cells) for cells in (header, rule, *rows))


def finish(title: str, body: str, expected: str, result: Mapping[str, Any], report: Path | None) -> None:
    """Print `body` and what was expected; write them as a dated Markdown report; print `result` as the last line.

    result: holds `machine()` under "machine"; may hold spreads. report: the file to write, None for none.
    """
    print(f"{body}\n\nExpected: {expected}\n")
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(_markdown(title, body, expected, result["machine"]), encoding="utf-8")
    print(json.dumps({"benchmark": Path(sys.argv[0]).stem, **result}, default=Spread.facts), flush=True)


def _markdown(title: str, body: str, expected: str, on: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    return (
        f"# {title}, {on['date'][:10]}\n\n"
        f"Begun {on['date']} on `{on['host']}`: {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB, "
        f"{on['system']}; load before it {on['load_1min']}.\n\n"
        f"Versions: {packages}.\n\n"
        f"Command: `python {' '.join([f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}`\n\n"
        f"{body}\n\nExpected: {expected}\n"
    )
