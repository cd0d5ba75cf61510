"""The files that a truth comes in: tables, Label Studio's export, and a mapping of names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from clipbatch.config.nesting import parse_json
from clipbatch.errors import InputError, reading_failed

# Columns of a review queue that say how its rows were drawn.
QUEUE = ("stratum", "weight")


def read_table(path: Path) -> pa.Table:
    """The table in a file; of CSV, every column as text. Raises: InputError where it cannot be read."""
    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".csv": lambda file: _read_csv(file, ","),
        ".tsv": lambda file: _read_csv(file, "\t"),
        ".parquet": lambda file: pq.read_table(file),
        ".json": label_studio_answers,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"--truth {path}: give a .csv, .tsv or .parquet file, or the .json that Label Studio exports")
    try:
        return readers[path.suffix.lower()](path)
    except OSError as error:
        raise reading_failed(f"the truth {path}", error) from error
    except pa.ArrowException as error:
        raise InputError(f"the truth {path} cannot be read: {str(error).splitlines()[0]}") from error


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    parse = pc_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = pc_csv.open_csv(path, parse_options=parse).schema.names
    only_once = Counter(names).most_common(1)
    if only_once and only_once[0][1] > 1:
        raise InputError(f"{path}: column {only_once[0][0]!r} appears twice: rename one")
    convert = pc_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pc_csv.read_csv(path, parse_options=parse, convert_options=convert)


def label_studio_answers(path: Path) -> pa.Table:
    """The answers in a JSON export of Label Studio, of tasks that `clipbatch review` made."""
    try:
        tasks = parse_json(path.read_bytes())
        rows = []
        for task in tasks:
            data = task["data"]
            done = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
            choices: list[str] = []
            for result in done[-1]["result"] if done else []:
                choices += result["value"]["choices"]
            truth = "" if not done else "|".join(choices) or "[]"
            rows.append({name: data[name] for name in ("row_id", *QUEUE)} | {"truth": truth})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not what Label Studio exports as JSON of tasks that clipbatch review made: {error!r}"
        ) from error
    return pa.Table.from_pylist(rows)


def read_mapping(spec: str) -> dict[str, str]:
    """A label for each name: from a JSON object, or from a table with names and labels in its two columns."""
    path = Path(spec)
    try:
        if path.suffix.lower() == ".json":
            found = parse_json(path.read_bytes())
            if isinstance(found, dict) and all(isinstance(label, str) for label in found.values()):
                return found
        elif path.suffix.lower() in (".csv", ".tsv"):
            table = _read_csv(path, "\t" if path.suffix.lower() == ".tsv" else ",")
            if table.num_columns == 2:
                return dict(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))
    except OSError as error:
        raise reading_failed(f"the mapping {path}", error) from error
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"the mapping {path} cannot be read: {str(error).splitlines()[0]}") from error
    raise InputError(
        f"--mapping {path}: give a JSON object {{name: label}}, or a .csv with two columns, names and their labels"
    )


def named(table: pa.Table) -> str:
    """The columns of a table, for messages."""
    return ", ".join(table.column_names)
