"""Is every bit that flips in the files of a run noticed, and does the remedy that is printed leave the run as it was?

    python benchmarks/flips.py [--flips 1000] [--seed 12] [--report FILE.md]

Flips single bits at random places of a finished run's files, and of the cache of label features, as tests/flips.py does
it: `clipbatch verify` has to notice each one (the cache: the next run), its remedy is followed to the letter, and then
every file has to hold what it held. With the same flip again, a part is labelled or all are put together at once, which
has to be refused, or give what an undisturbed run gives. All of it in one process, whose model stays loaded.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import arguments, finish, machine, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EXPECTED = (
    "each flip noticed; nothing wrong, lost or else than before after the remedy, and no advice that harms a part."
)
_PLACES = re.compile(r"\S*/\S+|part-\d+\S*|[0-9a-f]{16,}")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    from tests.support.flips import KINDS, Flip, Flips
    from tests.support.warm import Warm

    on, rng, found = machine(), random.Random(options.seed), list[Flip]()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="clipbatch-flips-") as scratch:
        flips = Flips(Warm({"HF_HUB_OFFLINE": "1"}), Path(scratch, "flips"))
        for number in range(options.flips):
            found.append(flips.try_one(list(KINDS)[number % len(KINDS)], rng))
            if found[-1].faults or number % 50 == 49:
                print(
                    f"  {number + 1} of {options.flips}: {found[-1].faults or 'none amiss'}",
                    file=sys.stderr,
                    flush=True,
                )
    seconds = time.perf_counter() - begun
    rows = []
    for kind, pattern in KINDS.items():
        ours = [flip for flip in found if flip.kind == kind]
        files = len({flip.file for flip in ours})
        name = pattern.removeprefix("run/") + (f" ({files} files)" if files > 1 else "")
        noticed, faulty = sum(bool(flip.said) for flip in ours), sum(bool(flip.faults) for flip in ours)
        rows.append([name, str(len(ours)), str(noticed), str(len(ours) - faulty)])
    rows.append(["all", *(str(sum(int(row[at]) for row in rows)) for at in (1, 2, 3))])
    said = Counter(_PLACES.sub("...", flip.said).removeprefix("the ") for flip in found if flip.said)
    faults = [
        f"- {flip.file}, byte {flip.at}, bit {flip.bit}: {'; '.join(flip.faults)}" for flip in found if flip.faults
    ]
    body = (
        f"{options.flips} single-bit flips, seed {options.seed}, in {seconds:,.0f} s.\n\n"
        f"{table(('file', 'flips', 'noticed', 'mended and never wrong'), rows)}\n\n"
        "What was said, places left out:\n\n"
        + table(("first line", "times"), [[text, str(count)] for text, count in said.most_common()])
        + ("\n\nAmiss:\n\n" + "\n".join(faults) if faults else "\n\nNothing was amiss.")
    )
    result: dict[str, Any] = {"machine": on, "flips": len(found), "noticed": sum(bool(flip.said) for flip in found)}
    result |= {"amiss": len(faults), "seconds": round(seconds)}
    finish("Single bits that flip in the files of a run", body, EXPECTED, result, options.report)
    if faults:
        raise SystemExit(f"{len(faults)} of {len(found)} flips were not dealt with as they should")


if __name__ == "__main__":
    main()
