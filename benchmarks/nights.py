"""Does every image have its latest row after each night, whatever happens to images and increments by day?

    python benchmarks/nights.py [--seeds 200] [--nights 10] [--kills 24] [--report FILE.md]

Each seed is a history of its own (tests/history.py): images are added, changed, put back, touched and taken away, with
times from all centuries, and increments are removed. About every third night is killed. In `--kills` of the seeds the
nights are processes that get a SIGKILL, the supervisor alone or with its worker; in the others they are played in this
process, and the file system takes nothing more from a random moment on. After each night that went to its end, every
image is compared with its last row; after the last one, a further night has to find nothing new, and the rows have to
be those of a run over the same images.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import harness

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support import history as histories
from tests.support.warm import Warm

DEMO = ("--labels", "cifar10", "--model", "clipbatch-demo")
SMALL = ("--batch-size", "4", "--shard-size", "4", "--incremental", "--json", "--quiet")
KILLED_SHARE = 0.3
CHANGES = 60
"""Of the file system in a night, at most, before one that is played dies."""
MOMENTS = (".*manifest*", "manifest/*", "run.json", "model.json", "parts/.*", "parts/part-*")
"""What appears in a new increment in the course of a night: one of these is waited for before a kill."""
EXPECTED = "no image without its latest row, no name for other rows, nothing new in a further night."


class Nights:
    """The commands of a history."""

    def __init__(self, history: histories.History, cache: Path, kills: Callable[[Nights], bool]) -> None:
        """kills: goes through a night that is to be killed; whether it was."""
        self.history, self.kills = history, kills
        self.environment = {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
        self.warm = Warm(self.environment)
        into = ("--out", str(history.dataset))
        self.command = ("run", str(history.input), *DEMO, *SMALL, *history.options, *into)

    def whole(self) -> dict[str, Any]:
        """The report of a night that nobody kills."""
        found: dict[str, Any] = json.loads(self.warm(*self.command).stdout)
        return found


def play_death(death: histories.Death) -> Callable[[Nights], bool]:
    """Kills in this process."""

    def killed(nights: Nights) -> bool:
        history = nights.history
        return death.during(history.dataset, history.rng.randrange(CHANGES), lambda: nights.warm(*nights.command))

    return killed


def kill(nights: Nights) -> bool:
    """A night in a process of its own, with a SIGKILL within a second of a random moment."""
    rng, dataset = nights.history.rng, nights.history.dataset
    moment, wait_s, alone = rng.choice(MOMENTS), rng.choice((0.0, 0.01, 0.1, 1.0)) * rng.random(), rng.random() < 0.5
    there = set(dataset.glob(f"increment-*/{moment}"))
    process = subprocess.Popen(
        [sys.executable, "-m", "clipbatch", *nights.command],
        env={**os.environ, **nights.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not set(dataset.glob(f"increment-*/{moment}")) - there:
        time.sleep(0.002)
    time.sleep(wait_s)
    was_alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(500):  # a worker whose supervisor is dead ends by itself
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    return was_alive


def live(nights: Nights, count: int, tally: Counter[str]) -> list[str]:
    """Go through `count` nights; returns what was wrong. tally: counts what happened."""
    history, wrong = nights.history, list[str]()
    for night in range(count):
        history.day()
        before = history.labelled()
        tally["nights"] += 1
        if night < count - 1 and history.rng.random() < KILLED_SHARE:
            tally["killed"] += nights.kills(nights)
        else:
            said = nights.whole()
            tally["finished first"] += len(said["finished"])
            tally["images new"] += said["increment"]["new"]
            tally["images changed"] += said["increment"]["changed"]
            tally["images known"] += said["increment"]["known"]
            tally["nights with odd times"] += bool(said["notes"])
            wrong += [f"night {night}: {text}" for text in history.problems(said)]
        wrong += [f"night {night}: {text}" for text in history.note_names(before)]
    tally["increments removed"] += history.removed
    again = nights.whole()["increment"]
    if again["folder"]:
        wrong.append(f"a further night found {again}")
    return wrong + differences(nights)


def differences(nights: Nights) -> list[str]:
    """Where the last rows are not those of a run over the images as they are."""
    anew, last, wrong = nights.history.dataset.with_name("anew"), nights.history.last_rows(), []
    nights.warm("run", nights.history.input, *DEMO, "--quiet", "--out", anew)
    for row in histories.rows_of(anew):
        mine = last.get(row["uri"], {"label": "no row", "status": "none", "scores": None})
        same = (mine["label"], mine["status"]) == (row["label"], row["status"])
        if not same or not np.allclose(mine["scores"] or [], row["scores"] or [], atol=1e-3):
            wrong.append(f"{row['uri']} has {mine['status']}, {mine['label']}; anew {row['status']}, {row['label']}")
    return wrong


def scratches() -> list[str | None]:
    """Where histories take place in turn: a file system in memory, if there is one, holds times that disks do not."""
    memory = "/dev/shm"
    return [None, memory] if os.access(memory, os.W_OK) else [None]


def main() -> None:
    parser = harness.arguments("Random histories of a dataset of increments.")
    parser.add_argument("--seeds", type=int, default=200, help="histories (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--nights", type=int, default=10, help="of each (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=24, help="seeds whose nights are real processes (%(default)s)")
    args = parser.parse_args()
    on, begun, death = harness.machine(), time.perf_counter(), histories.death()
    real = set(random.Random(0).sample(range(args.first, args.first + args.seeds), args.kills))
    tallies: dict[str, Counter[str]] = {"in this process": Counter(), "real processes": Counter()}
    wrong: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="clipbatch-cache-") as cache:
        for number, seed in enumerate(range(args.first, args.first + args.seeds)):
            places = scratches()
            root = Path(tempfile.mkdtemp(prefix="clipbatch-nights-", dir=places[number // 2 % len(places)]))
            tally = tallies["real processes" if seed in real else "in this process"]
            tally["histories"] += 1
            try:
                history = histories.History(root, seed)
                found = live(
                    Nights(history, Path(cache), kill if seed in real else play_death(death)), args.nights, tally
                )
            except Exception:
                found = [traceback.format_exc()]
            finally:
                shutil.rmtree(root)
            if found:
                wrong[seed] = found
            print(f"  seed {seed}: {len(found)} wrong", *found, sep="\n    ", file=sys.stderr, flush=True)
    names = sorted({name for tally in tallies.values() for name in tally}, key=lambda name: (name != "histories", name))
    lines = [[name, *(f"{tally[name]:,}" for tally in tallies.values())] for name in names]
    seconds = time.perf_counter() - begun
    body = f"{harness.table(['', *tallies], lines)}\n\n{seconds:,.0f} s. "
    body += f"Histories in which something was wrong: {len(wrong)} of {args.seeds}."
    body += "".join(
        f"\n\nSeed {seed}:\n\n" + "\n".join(f"    {text}" for text in texts) for seed, texts in wrong.items()
    )
    harness.finish(
        "Ten nights of a random history" if args.nights == 10 else f"{args.nights} nights of a random history",
        body,
        EXPECTED,
        {"machine": on, "wrong": {str(seed): texts for seed, texts in wrong.items()}, "counts": tallies},
        args.report,
    )
    if wrong:
        raise SystemExit(f"{len(wrong)} histories went wrong")


if __name__ == "__main__":
    main()
