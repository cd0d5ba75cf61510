"""Work that is killed at random moments and begun again until it is done. Then it must look as if nothing had happened.

A kill counts where a file has been published since the kill before it, or since the command was started. Kills while
it starts, lists or plans are made too, and counted apart. What is left in the end is compared, byte for byte and name
for name, with what undisturbed work leaves. Knows no pytest: `benchmarks/kills.py` does the same more often.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from tests.support.corpus import photo

# In a shard: many small parts, so that kills meet many of them in the making.
ROWS = 16
MODEL = ("--labels", "cifar10", "--model", "clipbatch-demo", "--batch-size", ROWS, "--shard-size", ROWS)
IMAGES = 64
# Share of the processes that are killed before they have published anything.
EARLY = 0.15
_EARLY_S = 1.5
_JITTER_S = 0.04
# Parts that two workers have begun. Where two workers die over the same ones, images are tried one by one, which takes
# long, and is tested elsewhere.
_IN_HAND = 26
_POLL_S = 0.005
# Files that tell of times, or of how often something was begun.
_DIFFERENT = ("report.json", ".counts.json", ".lock")


# Does `clipbatch ARGS`, and raises an exception where that fails.
Do = Callable[..., object]


class Process(Protocol):
    """As `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


# Starts `clipbatch ARGS`, with a file for what it says.
Start = Callable[[Sequence[str], Path], Process]


def start(arguments: Sequence[str], log: Path) -> Process:
    """A process as users start it."""
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "clipbatch", *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _nothing(out: Path) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of clipbatch."""

    # All but `--out`.
    arguments: Sequence[object]
    # Is given the output folder before the command is first run.
    prepare: Callable[[Path], object] = _nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Commands that follow one another, with the same output folder."""

    steps: Sequence[Step]
    # Options that change nothing in the result; each process gets one of these.
    variants: Sequence[Sequence[object]] = ((),)
    # Says what is wrong in the output folder after a kill.
    allowed: Callable[[Path], list[str]] = lambda out: []

    def do(self, out: Path, do: Do) -> None:
        """Do it undisturbed."""
        for step in self.steps:
            step.prepare(out)
            do(*step.arguments, "--out", out)


@dataclass(slots=True, kw_only=True)
class Kills:
    """What came of it."""

    supervisors: int = 0
    workers: int = 0
    # Before anything was published; these do not count.
    early: int = 0
    # How often the work was done from beginning to end.
    rounds: int = 0
    # Files that differ from those of undisturbed work, are missing, or are left over.
    wrong: list[str] = field(default_factory=list)

    @property
    def counted(self) -> int:
        return self.supervisors + self.workers


def kill_often(work: Work, folder: Path, *, kills: int, seed: int, do: Do, start: Start = start) -> Kills:
    """Do `work` in `folder` again and again until `kills` have counted. Raises: RuntimeError where it fails itself."""
    dice, done = random.Random(seed), Kills()
    whole, out = folder / "whole", folder / "killed"
    work.do(whole, do)
    while done.counted < kills:
        shutil.rmtree(out, ignore_errors=True)
        for step in work.steps:
            step.prepare(out)
            command = [str(argument) for argument in (*step.arguments, "--out", out)]
            most = max(1, len(_published(whole)) // (10 * len(work.steps)))
            while not _is_done([*command, *map(str, dice.choice(work.variants))], out, most, dice, done, kills, start):
                done.wrong += work.allowed(out)
        done.rounds += 1
        done.wrong += differences(whole, out)
        print(f"{done.counted} of {kills} kills, {done.rounds} rounds", file=sys.stderr, flush=True)
    return done


def differences(whole: Path, out: Path) -> list[str]:
    """Names of files that are not the same in both folders."""
    names = {path.relative_to(top) for top in (whole, out) for path in top.rglob("*") if path.name not in _DIFFERENT}
    return [str(out / name) for name in sorted(names) if _content(whole / name) != _content(out / name)]


def workers(supervisor: int) -> list[int]:
    """Processes that run `clipbatch.worker` under `supervisor`, by their command line or name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            named = (entry / "cmdline").read_bytes() + (entry / "comm").read_bytes()
            if parent == supervisor and b"clipbatch.worke" in named:
                found.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def _is_done(
    command: list[str], out: Path, most: int, dice: random.Random, done: Kills, kills: int, start: Start
) -> bool:
    """Start a command, and kill it or its workers each time that it has published up to `most` files, until `kills`
    have counted; whether it has come to its end."""
    log = out.with_name(f"{out.name}.log")
    process = start(command, log)
    if done.counted < kills and dice.random() < EARLY:
        time.sleep(dice.uniform(0, _EARLY_S))
        if process.poll() is None and not _published(out):
            process.kill()
            done.early += 1
    least = 1
    while done.counted < kills and _wait(process, out, dice.randint(least, least + most)):
        time.sleep(dice.uniform(0, _JITTER_S))
        victim = dice.choice([process.pid, *workers(process.pid) * 2])
        if victim == process.pid:
            process.kill()
            done.supervisors += process.wait() == -signal.SIGKILL
        else:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(victim, signal.SIGKILL)
                done.workers += 1
                least = _IN_HAND
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        said = log.read_text(errors="replace")
        raise RuntimeError(f"clipbatch {' '.join(command)} ended with exit code {code}:\n{said}")
    return code == 0


def _wait(process: Process, out: Path, count: int) -> bool:
    """Wait until `count` more files are published, or all there will be; whether the process still runs then."""
    before = _published(out)
    while process.poll() is None and len(_published(out) - before) < count:
        time.sleep(_POLL_S)
    return process.poll() is None


def _published(out: Path) -> set[tuple[str, int]]:
    """Files that have their final name, with their file numbers, since one that is replaced counts again. It is asked
    often, so it must be cheap."""
    found: set[tuple[str, int]] = set()
    for folder in (out, out / "parts", *out.glob("increment-*/parts")):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            found |= {(entry.path, entry.inode()) for entry in entries if entry.name.startswith("part-")}
    return found


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else b"a folder" if path.is_dir() else None


def draw_images(folder: Path) -> list[Path]:
    """IMAGES small pictures, three of them bad, in the new `folder`."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    paths = [folder / f"{number:02}.jpg" for number in range(IMAGES)]
    for path in paths:
        photo(rng, 40, 30).save(path, quality=85)
    paths[10].write_bytes(b"")
    paths[20].write_bytes(paths[20].read_bytes()[:300])
    paths[30].write_bytes(b"no image")
    return paths


def run_work(folder: Path, parts: int, *options: object) -> Work:
    """A run of so many parts."""
    names = [str(path) for path in draw_images(folder / "images")] * -(-parts * ROWS // IMAGES)
    (folder / "list.txt").write_text("\n".join(names[: parts * ROWS]))
    step = Step(arguments=("run", folder / "list.txt", *MODEL, *options))
    return Work(steps=[step], variants=[("--workers", 1), ("--workers", 1), ("--workers", 2)])


def captions_work(folder: Path, parts: int) -> Work:
    """A run without labels that compares images with captions, many of which are equal."""
    names = draw_images(folder / "images")
    lines = [
        f"{names[row % IMAGES]},a photo of {row % 300} cats{' and dogs' * (row % 7)}" for row in range(parts * ROWS)
    ]
    (folder / "pairs.csv").write_text("\n".join(["image,text", *lines]))
    options = (*MODEL[2:], "--caption-column", "text", "--embeddings")
    variants = [("--workers", 1), ("--workers", 2)]
    return Work(steps=[Step(arguments=("run", folder / "pairs.csv", *options))], variants=variants)


def rescore_work(folder: Path, parts: int, do: Do) -> Work:
    """New labels for the embeddings of a run."""
    run_work(folder, parts, "--embeddings").do(folder / "source", do)
    return Work(steps=[Step(arguments=("rescore", folder / "source", "--labels", "cat,dog,ship"))])


def compact_work(folder: Path, parts: int, do: Do) -> Work:
    """The parts of a run, four of them in a file."""
    run_work(folder, parts).do(folder / "source", do)
    return Work(steps=[Step(arguments=("compact", folder / "source", "--rows-per-file", 4 * ROWS))])


def repair_work(folder: Path, parts: int, do: Do) -> Work:
    """A run whose parts are all damaged."""
    run_work(folder, parts).do(folder / "source", do)
    whole = {path.name: path.read_bytes() for path in (folder / "source" / "parts").iterdir()}
    damaged = {name: data[:100] + bytes([data[100] ^ 1]) + data[101:] for name, data in whole.items()}

    def prepare(out: Path) -> None:
        shutil.copytree(folder / "source", out)
        for name, data in damaged.items():
            (out / "parts" / name).write_bytes(data)

    def allowed(out: Path) -> list[str]:
        found = {name: _content(out / "parts" / name) for name in whole}
        return [f"{out}: {name}" for name, data in found.items() if data not in (damaged[name], whole[name])]

    return Work(steps=[Step(arguments=("run", "--repair"), prepare=prepare)], allowed=allowed)


def increments_work(folder: Path, parts: int, nights: int) -> Work:
    """Nights with so many parts together, each of which adds images to the input."""
    images = draw_images(folder / "images")

    def night(number: int) -> Step:
        def prepare(out: Path) -> None:
            target = folder / "in"
            if not number:
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
            for new in range(parts // nights * ROWS):
                os.link(images[new % IMAGES], target / f"{number}-{new:06}.jpg")

        return Step(arguments=("run", folder / "in", *MODEL, "--incremental"), prepare=prepare)

    return Work(steps=[night(number) for number in range(nights)])
