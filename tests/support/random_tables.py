"""Tables of random names and captions, written as people write them, and what clipbatch makes of each.

    PYTHONPATH=pipeline:. python tests/support/random_tables.py 100000 [SEED]

Names and captions have quotation marks, number signs, separators, line breaks and emoji in them. A table is found
whole, or refused with its line; where a way of writing cannot keep it whole, what was lost has to be said.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing as listings
from clipbatch.inputs.lister import LISTED

_PIECES = [
    '"',
    '""',
    "#",
    "# ",
    "'",
    ",",
    "\t",
    "\n",
    "\r\n",
    " ",
    ";",
    "é",
    "🐝",
    "👩‍👩‍👧",
    "\\",
    "x",
    "cap",
    "7",
    "/",
    "豆",
]
_SUFFIXES = [".jpg"] * 8 + [".JPEG", ".png", ".webp", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A table as it was written."""

    way: str
    path: Path
    names: list[str]
    # None where only names were written.
    captions: list[str] | None
    # Whether the way of writing says of every quotation mark what it is for.
    exact: bool


def _text(dice: random.Random, without: str = "") -> str:
    pieces = [piece for piece in _PIECES if not any(char in piece for char in without)]
    return "".join(dice.choices(pieces, k=dice.randrange(1, 7)))


def _name(dice: random.Random, without: str, suffixes: list[str]) -> str:
    folder = f"{_text(dice, without)}/" if dice.random() < 0.2 else ""
    return f"{folder}{_text(dice, without)}{dice.choice(suffixes)}"


Rows = list[tuple[str, str, int]]


def _python(rows: Rows, path: Path, dice: random.Random, separator: str, header: bool) -> None:
    how = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=how, lineterminator=dice.choice(["\n", "\r\n"]))
        writer.writerows([["path", "caption", "n"], *rows] if header else rows)


def _pandas(rows: Rows, path: Path, dice: random.Random, separator: str, header: bool) -> None:
    frame = pd.DataFrame(rows, columns=["path", "caption", "n"])
    how = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    frame.to_csv(path, sep=separator, index=header and dice.random() < 0.3, header=header, quoting=how)


def _pyarrow(rows: Rows, path: Path, dice: random.Random, separator: str, header: bool) -> None:
    how = dice.choice(["needed", "all_valid"])
    options = pacsv.WriteOptions(include_header=header, delimiter=separator, quoting_style=how)
    pacsv.write_csv(_arrow(rows), path, options)


def _plain(rows: Rows, path: Path, dice: random.Random, separator: str, header: bool) -> None:
    lines = [separator.join(map(str, row)) for row in ([("path", "caption", "n"), *rows] if header else rows)]
    end = dice.choice(["\n", "\r\n"])
    path.write_bytes((end.join(lines) + dice.choice(["", end])).encode())


def _arrow(rows: Rows) -> pa.Table:
    names, captions, numbers = zip(*rows, strict=True)
    return pa.table({"path": names, "caption": captions, "n": numbers})


def _jsonl(rows: Rows, path: Path, dice: random.Random) -> None:
    if dice.random() < 0.5:
        pd.DataFrame(rows, columns=["path", "caption", "n"]).to_json(path, orient="records", lines=True)
    else:
        dumped = (json.dumps(dict(zip(("path", "caption", "n"), row, strict=True)), ensure_ascii=False) for row in rows)
        path.write_bytes("".join(f"{line}\n" for line in dumped).encode())


_WRITERS: dict[str, Callable[[Rows, Path, random.Random, str, bool], None]] = {
    "python": _python,
    "pandas": _pandas,
    "pyarrow": _pyarrow,
    "plain": _plain,
}


def write_case(folder: Path, dice: random.Random) -> Case:
    """A random table in `folder`."""
    kind = dice.choice(["csv"] * 4 + ["tsv"] * 4 + ["txt", "jsonl", "parquet", "arrow"])
    path, count = folder / f"m.{kind}", dice.randrange(1, 9)
    suffixes = [".jpg"] if dice.random() < 0.5 else _SUFFIXES
    if kind == "txt":
        names = [name for _ in range(count) if not (name := _name(dice, "\n", suffixes)).isspace()] or ["x"]
        path.write_bytes(dice.choice(["\n", "\r\n"]).join(names).encode())
        return Case(way=kind, path=path, names=names, captions=None, exact=True)
    writer, header = dice.choice(list(_WRITERS)), dice.random() < 0.7
    separator = "\t" if kind == "tsv" else ","
    without = f"{separator}\n\r" if writer == "plain" and kind in ("csv", "tsv") else ""
    rows = [(_name(dice, without, suffixes), _text(dice, without), number) for number in range(count)]
    if kind in ("csv", "tsv"):
        _WRITERS[writer](rows, path, dice, separator, header)
        way = f"{kind} by {writer}{'' if header else ', no header'}"
    else:
        way = kind
        if kind == "jsonl":
            _jsonl(rows, path, dice)
        else:
            (pq.write_table if kind == "parquet" else feather.write_feather)(_arrow(rows), path)
    names, captions = [row[0] for row in rows], [row[1] for row in rows]
    if writer == "plain" and kind in ("csv", "tsv"):  # what looks properly quoted is
        names, captions = (list(map(_unquoted, cells)) for cells in (names, captions))
    return Case(
        way=way, path=path, names=names, captions=captions, exact=kind not in ("csv", "tsv") or writer != "plain"
    )


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if re.fullmatch(r'"([^"]|"")*"', cell) else cell


def outcome(case: Case) -> str:
    """`whole`, `refused`, or `said`, of a table that was not exact; an AssertionError for anything else."""
    listing, found, error = _listed(case.path)
    if listing is None or found is None:
        told = re.search(r"lines? \d|first line|nothing but \d+ lines|has more than one column|which column", error)
        assert told, (case.way, error, case.path.read_bytes())
        return "refused"
    notes = listing.passed_over()
    where = (case.way, case.names, case.captions, found["uri"].to_pylist(), dict(notes), case.path.read_bytes()[:2000])
    comments = sum(count for what, count in notes.items() if "comments" in what)
    if case.way == "txt":
        kept = [name.rstrip("\r") for name in case.names]
        kept = [name for name in kept if not re.match(r"#+([ \t]|$)", name)]
        assert found["uri"].to_pylist() == kept, where
        assert comments == len(case.names) - len(kept), where
        return "said" if comments else "whole"
    if found["uri"].to_pylist() != case.names:
        assert not case.exact, where
        assert any("look like rows" in what for what in notes), where
        return "said"
    captions = _captions(found, case)
    assert captions == case.captions or not case.exact, (captions, *where)
    return "whole"


def _listed(path: Path) -> tuple[listings.Listing | None, pa.Table | None, str]:
    try:
        listing = listings.Listing(listings.listers(SourceSettings(inputs=(str(path),))), None, ())
        return listing, pa.Table.from_batches(listing.batches(), listing.schema), ""
    except InputError as error:
        return None, None, str(error)


def _captions(found: pa.Table, case: Case) -> list[str]:
    """The captions, which are in the column of that name, or in the second one that has no name."""
    columns = [name for name in found.column_names if name not in LISTED.names]
    column = next(name for name in ("caption", "column_2", *columns) if name in columns)
    values = found[column]
    if pa.types.is_string(values.type):
        return list(values.to_pylist())
    return case.captions or []  # `7` and its like are numbers


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    begun, outcomes = time.monotonic(), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            dice = random.Random(f"{seed}/{number}")
            try:
                case = write_case(Path(folder), dice)
                outcomes[case.way, outcome(case)] += 1
            except AssertionError as error:
                outcomes["failed", str(number)] += 1
                print(f"table {seed}/{number}: {error}", file=sys.stderr)
    for (way, what), times in sorted(outcomes.items()):
        print(f"{way:28} {what:8} {times}")
    failed = sum(times for (way, _), times in outcomes.items() if way == "failed")
    print(json.dumps({"tables": count, "seed": seed, "failed": failed, "seconds": round(time.monotonic() - begun)}))


if __name__ == "__main__":
    main()
