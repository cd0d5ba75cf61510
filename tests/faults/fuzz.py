"""Files that are wrong in every way that a format's structure allows, put through real runs.

    python tests/faults/fuzz.py --images 100000 --out WORKDIR [--decoder auto|dali] [--seed N] [--report PATH.md]

Writes folders of fuzzed images, every tenth file a healthy witness, labels each folder with `clipbatch run`, and checks
that the run ended well, that every file is one row, in order, that `verify` agrees, and that every witness has the
scores that it has among healthy files. Files that ended a worker are kept in WORKDIR/kept, and the whole folder of a
run that went wrong. The same seed gives the same files (with the same Pillow). Exit code 1 if any promise was broken.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.mutations import fuzzed, seeds

FOLDER = 5_000
WITNESS_EVERY = 10
SETTINGS = ("--labels", "cifar10", "--model", "clipbatch-demo", "--precision", "fp32", "--device", "cpu")
LIMITS = ("--batch-size", "32", "--shard-size", "256", "--max-pixels", "30000000", "--decode-timeout", "30")


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of all files so far."""

    images: int = 0
    witnesses: int = 0
    # Statuses by kind of damage.
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    # Images with status ok by their decoder, witnesses left out.
    decoded_by: Counter[str] = field(default_factory=Counter)
    # Kept files that ended a worker, with their status and error.
    quarantined: list[str] = field(default_factory=list)
    restarts: int = 0
    runs: int = 0
    runs_lost: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    witnesses_harmed: int = 0
    # Every promise that was not kept, in words.
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


def label(folder: Path, out: Path, decoder: str) -> "subprocess.CompletedProcess[str]":
    """`clipbatch run` over `folder`, as a user starts it."""
    command = [sys.executable, "-m", "clipbatch", "run", str(folder), *SETTINGS, *LIMITS, "--decoder", decoder]
    return subprocess.run([*command, "--out", str(out), "--json"], capture_output=True, text=True, check=False)


def table(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted((out / "parts").glob("part-*.parquet"))])


def witness_scores(work: Path, witnesses: list[tuple[str, bytes]], decoder: str) -> list[list[float]]:
    """The scores of each witness in a run that has only witnesses."""
    folder = work / "witnesses"
    folder.mkdir(parents=True)
    for number, (suffix, data) in enumerate(witnesses):
        (folder / f"{number:03}{suffix}").write_bytes(data)
    made = label(folder, work / "witness-scores", decoder)
    if made.returncode:
        raise SystemExit(f"the witnesses alone cannot be labelled:\n{made.stderr}")
    found = table(work / "witness-scores")
    if set(found["status"].to_pylist()) != {"ok"}:
        raise SystemExit(f"a witness is not healthy: {found['error'].to_pylist()}")
    return found["scores"].to_pylist()


def fuzz(images: int, work: Path, *, decoder: str = "auto", seed: int = 0, folder_size: int = FOLDER) -> Tally:
    """Fuzz `images` files through runs of `folder_size`, in the new folder `work`."""
    tally, begun, healthy = Tally(), time.monotonic(), seeds()
    witnesses = [file for files in healthy.values() for file in files[::2]]
    expected = witness_scores(work, witnesses, decoder)
    for first in range(0, images, folder_size):
        folder, out, kinds = work / f"images-{first:07}", work / f"scores-{first:07}", dict[str, str]()
        folder.mkdir()
        for number in range(first, min(first + folder_size, images)):
            if number % WITNESS_EVERY == 0:
                kind, (suffix, data) = "witness", witnesses[number // WITNESS_EVERY % len(witnesses)]
            else:
                kind, suffix, data = fuzzed(number, seed, healthy)
            kinds[f"{number:07}-{kind}{suffix}"] = kind
            (folder / f"{number:07}-{kind}{suffix}").write_bytes(data)
        before = len(tally.broken)
        check(tally, folder, out, decoder, kinds, expected)
        if len(tally.broken) == before:
            shutil.rmtree(folder)
            shutil.rmtree(out)
        tally.seconds = time.monotonic() - begun
        print(f"{tally.images} images, {tally.restarts} restarts, {tally.seconds:.0f} s", file=sys.stderr, flush=True)
    return tally


def check(
    tally: Tally, folder: Path, out: Path, decoder: str, kinds: dict[str, str], expected: list[list[float]]
) -> None:
    """Label `folder` and add what came of it to `tally`. kinds: of each file, in the order of names."""
    made = label(folder, out, decoder)
    tally.runs += 1
    tally.images += len(kinds)
    if made.returncode:
        tally.runs_lost += 1
        tally.broken.append(f"{folder}: exit code {made.returncode}: {made.stderr[-3000:]}")
        return
    verified = subprocess.run([sys.executable, "-m", "clipbatch", "verify", out], capture_output=True, text=True)
    if verified.returncode:
        tally.broken.append(f"{out}: {verified.stderr}")
    found, report = table(out).to_pylist(), json.loads(made.stdout)["this_run"]
    names = [os.path.basename(row["uri"]) for row in found]
    tally.rows_lost += len(kinds.keys() - set(names))
    tally.rows_doubled += len(names) - len(set(names))
    if names != list(kinds):
        tally.broken.append(f"{out}: the rows are not the files, in order")
    tally.restarts += report["restarts"]
    if report["restarts"] and not report["quarantined"]:
        tally.broken.append(f"{out}: {report['restarts']} restarts and no row to blame: {made.stderr[-3000:]}")
    kept = folder.parent / "kept"
    for entry in report["quarantined"]:
        name = names[entry["row_id"]]
        kept.mkdir(exist_ok=True)
        shutil.copy(folder / name, kept)
        tally.quarantined.append(f"{kept / name}: {entry['status']}: {entry['error']}")
    for row, name in zip(found, names, strict=True):
        tally.by_kind.setdefault(kinds[name], Counter())[row["status"]] += 1
        if row["status"] == "ok" and kinds[name] != "witness":
            tally.decoded_by[row["decoder"]] += 1
        if kinds[name] == "witness":
            tally.witnesses += 1
            right = expected[int(name[:7]) // WITNESS_EVERY % len(expected)]
            if row["status"] != "ok" or not np.allclose(row["scores"], right, rtol=0, atol=1e-6):
                tally.witnesses_harmed += 1
                tally.broken.append(f"{folder / name}: a witness is {row['status']}: {row['scores']}, not {right}")


def lines(tally: Tally) -> str:
    """The tally as Markdown."""
    statuses = sorted({status for counts in tally.by_kind.values() for status in counts})
    rows = [["damage", *statuses], ["---", *("---:" for _ in statuses)]]
    rows += [[kind, *(str(counts[s]) for s in statuses)] for kind, counts in sorted(tally.by_kind.items())]
    rows.append(["all", *(str(sum(counts[s] for counts in tally.by_kind.values())) for s in statuses)])
    names = ("images", "witnesses", "runs", "restarts", "runs_lost", "rows_lost", "rows_doubled", "witnesses_harmed")
    said = [f"{name.replace('_', ' ')}: {getattr(tally, name)}" for name in names]
    said.append(f"ok, witnesses left out: {', '.join(f'{n} by {name}' for name, n in tally.decoded_by.most_common())}")
    kept = [f"- {entry}" for entry in [*tally.quarantined, *tally.broken]]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", "; ".join(said) + ".", "", *kept])


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz clipbatch with images that are wrong in structured ways.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True, help="a new folder to work in")
    parser.add_argument("--decoder", choices=("auto", "dali", "torchvision", "pil"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write a Markdown report here")
    args = parser.parse_args()
    tally = fuzz(args.images, args.out, decoder=args.decoder, seed=args.seed)
    text = lines(tally)
    print(text)
    if args.report:
        command = " ".join(["python tests/faults/fuzz.py", *sys.argv[1:]])
        args.report.write_text(f"# Fuzzing, {time.strftime('%Y-%m-%d')}\n\n`{command}`\n\n{text}\n")
    facts: dict[str, Any] = {name: getattr(tally, name) for name in tally.__slots__ if name != "by_kind"}
    facts["status"] = dict(sum(tally.by_kind.values(), Counter[str]()))
    print(json.dumps({"decoder": args.decoder, "seed": args.seed, **facts}))
    sys.exit(1 if tally.broken else 0)


if __name__ == "__main__":
    main()
