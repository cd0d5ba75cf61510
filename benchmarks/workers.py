"""How much faster are two CPU workers than one? Whole runs, each worker on one core of its own, taking turns.

    python benchmarks/workers.py --images FOLDER [--report FILE.md]

A worker on one core encodes with one thread. Contestants: one worker on the first core; two workers, a core each; and
for comparison one worker with both cores. The figure is images/s of the run without loading the model, as its report
has it. On a busy machine it means little: the load before it is in the report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import arguments, finish, interleave, machine, ratios, spread, table

TARGET = 1.8


def run(listed: Path, cores: set[int], workers: int) -> float:
    """Images/s of a run on `cores`."""
    settings = ("--labels", "cifar10", "--model", "clipbatch-demo", "--device", "cpu", "--shard-size", "256")
    with tempfile.TemporaryDirectory(prefix="clipbatch-workers-") as out:
        command = [sys.executable, "-m", "clipbatch", "run", str(listed), *settings, "--workers", str(workers)]
        made = subprocess.run(
            [*command, "--out", f"{out}/run", "--json", "--quiet"],
            check=True,
            capture_output=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    return float(json.loads(made.stdout)["this_run"]["images_per_s"])


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--count", type=int, default=12_800, help="rows of a run; the images are repeated")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    on = machine()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    names = sorted(
        str(path.resolve()) for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "list.txt"
        listed.write_text("\n".join((names * (options.count // len(names) + 1))[: options.count]))
        contestants: dict[str, Callable[[], float]] = {
            "one worker, one core": lambda: run(listed, {first}, 1),
            "two workers, a core each": lambda: run(listed, {first, second}, 2),
            "one worker, two cores": lambda: run(listed, {first, second}, 1),
        }
        figures = interleave(contestants, options.rounds)
    one, two, both = figures.values()
    rows = [[name, spread(values).text(), ratios(values, one).text(2)] for name, values in figures.items()]
    what = f"{options.count} images of {len(names)} files; median (lowest-highest) of {options.rounds} rounds."
    body = f"{what}\n\n{table(('contestant', 'images/s', 'times one worker'), rows)}"
    expected = f"two workers are at least {TARGET} times as fast as one."
    result: dict[str, Any] = {
        "machine": on,
        "images_per_s": {name: spread(values) for name, values in figures.items()},
        "ratio": ratios(two, one),
        "ratio_of_threads": ratios(both, one),
    }
    finish("Two CPU workers against one", body, expected, result, options.report)


if __name__ == "__main__":
    main()
