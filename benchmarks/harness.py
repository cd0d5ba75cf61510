"""What all benchmarks share: options, rounds in turn, median and spread, tables, the dated report, the line of JSON.

A script says which questions it answers (`Benchmark`) and calls `run`. Contestants take turns (A B C, A B C, ...), so
that a machine that drifts (heat, other work, a full page cache) hits them all alike. A ratio is taken within each
round, and the median of the rounds' ratios counts. One full round before the first warms up caches, threads and
clocks, and is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clipbatch
from clipbatch.config import hardware
from clipbatch.runs.plan import versions

DEMO_IMAGES = Path(clipbatch.__file__).parent / "data" / "demo" / "images"
SHARED_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
PHOTOS = SHARED_PHOTOS if SHARED_PHOTOS.is_dir() else DEMO_IMAGES
Figures = dict[str, list[float]]
"""The figure of each contestant in every round, in the order of rounds."""


# What a script measures, and how it is called


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One question that a script answers."""

    title: str
    """Of the report; `{name}` is replaced by that option."""
    expected: str
    measure: Callable[[argparse.Namespace], tuple[str, dict[str, Any]]]
    """Returns the tables in Markdown, and the same figures for the line of JSON."""
    options: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """Name -> default and help. The default's type is the option's; a class stands for that type and no default."""
    folder: bool = False
    """Whether it takes a folder of photographs."""


def run(description: str, benchmarks: Mapping[str, Benchmark]) -> None:
    """Parse the command line, measure, and report. Several benchmarks are subcommands by their names."""
    parser = arguments(description.partition("\n")[0])
    if len(benchmarks) == 1:
        _add_options(parser, *benchmarks.values())
        parser.set_defaults(which=next(iter(benchmarks)))
    else:
        commands = parser.add_subparsers(dest="which", required=True, metavar="|".join(benchmarks))
        for name, benchmark in benchmarks.items():
            own = commands.add_parser(name, help=benchmark.title.replace("{", "").replace("}", ""))
            _add_options(own, benchmark)
            own.add_argument("--report", type=Path, help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen, on = benchmarks[args.which], machine()
    body, figures = chosen.measure(args)
    name = " ".join([Path(sys.argv[0]).stem, *([args.which] if len(benchmarks) > 1 else [])])
    result = {"benchmark": name, "machine": on, **figures}
    finish(chosen.title.format(**vars(args)), body, chosen.expected, result, args.report)


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--report", type=Path, help="write a dated Markdown report to this file")
    return parser


def _add_options(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    if benchmark.folder:
        what = "photographs (default: %(default)s)"
        parser.add_argument("folder", nargs="?", type=Path, default=PHOTOS, help=what)
    for name, (default, text) in benchmark.options.items():
        option = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(option, action="store_true", help=text)
        elif isinstance(default, type):
            parser.add_argument(option, type=default, help=text)
        else:
            parser.add_argument(option, type=type(default), default=default, help=f"{text} (default: %(default)s)")


# Rounds and what comes of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of some rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """For a table: `median (low-high)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"

    def facts(self) -> dict[str, float]:
        """For JSON: five significant digits, since no more are meant."""
        return {name: float(f"{getattr(self, name):.5g}") for name in self.__slots__}


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of `values`, one a round."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def spreads(figures: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """The spread of each contestant."""
    return {name: spread(values) for name, values in figures.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of the ratios `over / under`, each taken within its round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def interleave(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Figures:
    """Each contestant's figure in every round; the round that warms up is left out.

    contestants: name -> a function that does its work once and returns its figure (images/s, or seconds).
    """
    several = {name: lambda work=work: {"": work()} for name, work in contestants.items()}
    return take_turns(several, rounds)[""]


def take_turns(contestants: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int) -> dict[str, Figures]:
    """As `interleave`, where a contestant returns several figures by name. Returns figure -> contestant -> rounds."""
    if rounds < 1:
        raise SystemExit(f"--rounds {rounds} measures nothing: use 1 or more")
    result: dict[str, Figures] = {}
    for number in range(rounds + 1):
        what = f"round {number} of {rounds}" if number else "warm-up"
        for contestant, work in contestants.items():
            values = work()
            said = ", ".join(f"{name} {value:.4g}".strip() for name, value in values.items())
            print(f"  {what}: {contestant} {said}", file=sys.stderr, flush=True)
            for name, value in values.items() if number else ():
                result.setdefault(name, {}).setdefault(contestant, []).append(value)
    return result


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Times `work`, in seconds."""

    def seconds() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return seconds


def counted(work: Callable[[], int], expected: int | None = None) -> Callable[[], dict[str, float]]:
    """Rates of `work`, which returns how many images or rows it did: "per s", and "per CPU s" of this process's own
    processor time, which other work on the machine changes less. expected: what it has to return."""

    def figures() -> dict[str, float]:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        count = work()
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
        if expected is not None and count != expected:
            raise SystemExit(f"{count} of {expected} were done")
        return {"per s": count / seconds, "per CPU s": count / cpu_s}

    return figures


# Tables and the report


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also aligned for a terminal: the first column to the left, the others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(line(cells) for cells in (header, rule, *rows))


def spread_table(title: str, columns: Mapping[str, tuple[Mapping[str, Sequence[float]], int]]) -> str:
    """A row for each contestant. columns: heading -> figures and digits; a contestant without a figure has a gap."""
    names = list(dict.fromkeys(name for figures, _ in columns.values() for name in figures))
    rows = [
        [name, *(spread(figures[name]).text(digits) if name in figures else "" for figures, digits in columns.values())]
        for name in names
    ]
    return table((title, *columns), rows)


def compare(figures: Mapping[str, Sequence[float]], pairs: Mapping[str, str]) -> tuple[str, dict[str, Spread]]:
    """The ratios of pairs of contestants within each round, as a table and as spreads. pairs: `a / b` -> what is
    wanted of it, in words."""
    result = {}
    for pair in pairs:
        over, under = pair.split(" / ")
        result[pair] = ratios(figures[over], figures[under])
    rows = [(pair, ratio.text(2), pairs[pair]) for pair, ratio in result.items()]
    return table(("ratio within a round", "median (min-max)", "wanted"), rows), result


def machine() -> dict[str, Any]:
    """The machine, the date, the versions, and the load that was on it before the benchmark began."""
    load_1min = round(os.getloadavg()[0], 2)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, **hardware.describe(), "load_1min": load_1min, "versions": versions()}


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
