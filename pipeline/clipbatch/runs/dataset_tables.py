"""When the tables of a dataset change (`latest`): after a night, and when a dataset was made of another one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.inputs.listing import place_of, real_place
from clipbatch.inputs.patterns import is_pattern
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import latest
from clipbatch.runs.known import Known
from clipbatch.runs.latest import DELETED, Latest
from clipbatch.runs.stamps import Folders
from clipbatch.storage.atomic import publish
from clipbatch.storage.uris import absolute, is_url

# Without --confirm-deleted, no larger share of the images may be marked as deleted.
_MAX_GONE = 0.1


def _of_same_input(rows: Latest, inputs: tuple[str, ...]) -> NDArray[np.int64]:
    """The numbers of the rows of increments all of whose inputs are among `inputs`."""
    places = {real_place(text if is_url(text) else os.path.abspath(text)) for text in inputs}
    same = [np.empty(0, np.int64)]
    for path, start, size in zip(rows.increments, rows.starts.values(), rows.sizes, strict=True):
        if {place_of(identity) for identity in RunDir(path).plan().identity["inputs"]} <= places:
            same.append(np.arange(start, start + size))
    return np.concatenate(same)


def gone(
    folder: Path, known: Known, inputs: tuple[str, ...], incomplete: Sequence[str], confirmed: bool
) -> tuple[NDArray[np.int64], list[str]]:
    """The numbers of the latest rows of the same input whose image the listing does not have, and remarks.

    incomplete: places in the input that could not be listed as a whole.
    Raises: InputError if any row of these places is gone (for a pattern: any row), or if more than `_MAX_GONE` of the
    input's rows are gone, unless that is confirmed.
    """
    rows, named = known.latest(), ", ".join(inputs)
    there = rows.mask(rows.numbers) & rows.mask(_of_same_input(rows, inputs))  # sets of 40 million take minutes
    if not there.any():
        return np.empty(0, np.int64), [
            f"no image is marked as deleted, since no increment has all of its INPUT in {named}"
        ]
    there[latest.read_deleted(folder, rows)] = False
    missing = np.flatnonzero(rows.mask(known.gone()) & there)
    count = int(there.sum())
    if any(map(is_pattern, inputs)):  # it may have matched a table, whose images are anywhere
        places = Counter(dict.fromkeys(incomplete, 0))
        if incomplete:
            places[incomplete[0]] = len(missing)
    else:
        places = _places_of(rows, missing, incomplete)
    if len(missing) and places:
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise InputError(
            f"{places.total()} images of {named} were not found, but not all of {next(iter(places))}{more} could be "
            "listed, so nothing is marked as deleted: mount it or make it readable, remove it, or leave --mark-deleted "
            "out"
        )
    if len(missing) > _MAX_GONE * count and not confirmed:
        raise InputError(
            f"{len(missing)} of {count} images of {named} are gone, more than {_MAX_GONE:.0%}, so nothing is "
            "marked as deleted: see whether all of it is mounted; if they are gone indeed, add --confirm-deleted"
        )
    return missing, []


def _places_of(rows: Latest, missing: NDArray[np.int64], incomplete: Sequence[str]) -> Counter[str]:
    """Those of the places `incomplete` that the files of the rows `missing` are or were in, and how many rows each has.

    A place is a folder, or a link to one, or an archive. Both may be named by way of links.
    """
    folders = Folders()
    names: dict[str, str] = {}
    for place in reversed(incomplete):
        path = absolute(place).rstrip("/")
        names |= dict.fromkeys({path, folders.real(path), real_place(path)}, place)
    counts: Counter[str] = Counter()
    if not names:
        return counts
    for path in latest.files(rows, missing):
        for above in (path, folders.real(path)):
            while above and above not in names:
                above = above.rpartition("/")[0]
            if above in names:
                counts[names[above]] += 1
                break
    return counts


def keep(folder: Path, known: Known, gone: NDArray[np.int64], new: Path | None) -> list[str]:
    """Write `deleted.parquet` and `latest.parquet` anew where they have changed. Returns remarks for the user.

    gone: the numbers of rows to mark. new: the increment that was made.
    """
    rows = known.latest()
    deleted = latest.read_deleted(folder, rows)
    back = known.back(deleted)
    if new is not None:
        rows = rows.with_increment(new)
    marked = rows.mask(np.append(np.setdiff1d(deleted, back), gone)) & rows.mask(rows.numbers)
    latest.write_deleted(folder, rows, np.flatnonzero(marked))
    if new is not None or not latest.is_fresh(folder, rows.increments):
        latest.write_latest(folder, rows)
    notes = []
    if len(gone):
        notes.append(f"images that are gone, now marked in {folder / DELETED}: {len(gone)}")
    if len(back):
        notes.append(f"images that were marked as deleted and are back: {len(back)}")
    return notes


def follow(source: Path, out: Path, increments: Sequence[Path]) -> list[str]:
    """Give the dataset `out` the tables of the dataset `source`, of which it was made by rescoring. It keeps its own
    `deleted.parquet` if it has nights of its own. Returns remarks for the user.

    increments: those of `out`.
    """
    notes, deleted = [], source / DELETED
    if own := [path for path in increments if RunDir(path).plan().rescored is None]:
        if deleted.exists():
            notes = [f"the marks in {deleted} are not taken over, since {own[0]} was not made by rescoring"]
    elif deleted.exists():
        with publish(out / DELETED) as file:
            file.write(deleted.read_bytes())
    else:
        (out / DELETED).unlink(missing_ok=True)
    latest.write_latest(out, latest.latest(increments))
    return notes
