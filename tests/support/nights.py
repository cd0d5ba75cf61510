"""Datasets of increments: their pictures, their tables, and nights over a manifest."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.conftest import DEMO, Cli
from tests.support.history import Version, encoded, rows_of, set_time

SMALL = ("--batch-size", 4, "--shard-size", 4, "--incremental")


def put(path: Path, content: int) -> None:
    path.write_bytes(encoded(Version(content=content, time_ns=0)))
    set_time(path, (1_600_000_000 + content) * 10**9)


def increments(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("increment-*/run.json"))


def latest(out: Path) -> list[tuple[str, tuple[int, int]]]:
    """The uris of `latest.parquet`, and width and height of the rows that it points to."""
    found = []
    for row in pq.read_table(out / "latest.parquet").to_pylist():
        assert row["part"].startswith(f"{row['increment']}/parts/")
        table = pq.read_table(out / row["part"], filters=[("row_id", "=", row["row_id"])])
        (its,) = table.to_pylist()
        assert its["uri"] == row["uri"]
        found.append((its["uri"], (its["width"], its["height"])))
    return sorted(found)


class Manifest:
    """A dataset of a table of images, four of them, which are contents 1 to 4."""

    def __init__(self, warm: Cli, root: Path) -> None:
        self.warm, self.table, self.out = warm, root / "products.csv", root / "dataset"
        for content in range(1, 5):
            put(root / f"{content}.jpg", content)

    def night(self, text: str, *more: object, code: int = 0) -> Any:
        self.table.write_text(text)
        said = self.warm("run", self.table, *DEMO, *SMALL, *more, "--json", "--out", self.out, code=code)
        return said.stderr if code else json.loads(said.stdout)

    def counts(self, text: str) -> tuple[int, int, int]:
        made = self.night(text)["increment"]
        return made["new"], made["changed"], made["known"]

    def last(self) -> list[dict[str, Any]]:
        return rows_of(increments(self.out)[-1])
