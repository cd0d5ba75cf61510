"""Nightly increments: a dataset is a folder of runs, each over the images that were new or changed when it was made.

    dataset/increment-00001/    a run directory like any other; it does not change once it is complete
    dataset/increment-00002/    the images that were new or changed the next night
    dataset/latest.parquet      which row of which increment is the latest of each image (`latest`)
    dataset/deleted.parquet     rows of images that are gone, if `--mark-deleted` is used
    dataset/.highest            the highest number that an increment has had

The row of an image keeps what its file looked like (`stamps`). For images in a store or on the web these columns are
null, and only the name and the columns of the manifest count. Old rows stay, so an image that has changed has rows in
several increments; a row of the input is compared with the last of them (`known`). Only one process at a time makes an
increment.

Users may delete any increment, including the last one, or all. Images that only a deleted increment had are labelled
again, since nothing else knows of them. A number is never used twice.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipbatch.config import MOVED, PIXELS, Settings, from_flat
from clipbatch.errors import ClipbatchError, InputError, reading_failed
from clipbatch.inputs import listing as listings
from clipbatch.rundir import activity, creation
from clipbatch.rundir.layout import INCREMENT, RunDir
from clipbatch.runs import announce, causes, dataset_tables
from clipbatch.runs import plan as planner
from clipbatch.runs import run as runner
from clipbatch.runs.known import Known
from clipbatch.runs.latest import DELETED, LATEST
from clipbatch.runs.report import Increment, Report
from clipbatch.runs.stamps import Stamper
from clipbatch.storage.atomic import locked, publish, remove_leftovers
from clipbatch.storage.paths import StorePath, as_path, list_names
from clipbatch.workers.progress import Log, Observer, Progress

_HIGHEST = ".highest"
# The report page of a dataset.
_PAGE = "report.html"


class _NothingNewError(ClipbatchError):
    """All rows of the listing are known."""


def run(
    settings: Settings,
    out: str,
    *,
    hash_contents: bool = False,
    mark_deleted: bool = False,
    confirm_deleted: bool = False,
    quiet: bool = False,
    log_json: bool = False,
    observer: Observer | None = None,
) -> Report:
    """Label the images in the input of `settings` that are new or changed since the increments in `out`, as another
    increment. Increments that are not complete are finished first.

    hash_contents: compare the contents of files, all of which are read then, instead of their size and time.
    mark_deleted: mark images that the same input had, and has no more, in `deleted.parquet`. confirm_deleted: also if
    these are more than a tenth. observer: is told of the progress.
    Returns the report of the new increment. In addition it has `increment`: the folder (None if nothing was new) and
    how many rows were new, changed and known; `finished`: the reports of increments that were finished, each with its
    `folder`; `notes`: further remarks for the user.
    Raises: BusyError if another process makes an increment; InputError if an increment is damaged; NothingLabelledError
    if no row of any increment is ok; as `runs.run` does.
    """
    folder = as_path(out)
    if isinstance(folder, StorePath):
        raise InputError(f"--incremental needs a dataset on a disk, but {out} is in a store: give a local --out")
    if not settings.source.inputs:
        raise InputError("--incremental compares an INPUT with the images that are known: name an INPUT")
    if settings.source.sample:
        raise InputError("--incremental adds all that is new, and --sample takes some of it: leave one of them out")
    if confirm_deleted and not mark_deleted:
        raise InputError("--confirm-deleted is for --mark-deleted: add that, or leave --confirm-deleted out")
    if mark_deleted and (settings.source.limit or "-" in settings.source.inputs):
        raise InputError("--mark-deleted needs all of an INPUT: leave --limit out, and name a file in place of -")
    busy = f"another process is making an increment in {folder}: wait until it has finished, then run this again"
    with locked(folder, busy):
        remove_leftovers(folder)
        done = increments(folder)
        _note_highest(folder, done)  # before this invocation adds rows that somebody may see
        for run_dir in map(RunDir, done[-1:]):  # its last part may be there, and yet temp files of killed workers
            remove_leftovers(run_dir.path)
            remove_leftovers(run_dir.parts)
            activity.tidy(run_dir)
        again = from_flat(settings.within("invocation", "worker", "placement"))
        label = functools.partial(runner.run, again, quiet=quiet, log_json=log_json, observer=observer, judge=False)
        accepted = functools.partial(announce.start, Log(quiet=quiet, as_json=log_json), settings, out)
        finished: list[Report] = [{**label(path), "folder": str(path)} for path in done if not _is_complete(path)]
        known, like = Known(done), RunDir(done[-1]) if done else None
        notes: list[str] = []
        gone = np.empty(0, np.int64)
        target = folder / _name(_next_number(folder))

        def select(listing: listings.Listing) -> Iterator[pa.RecordBatch]:
            nonlocal gone
            yield from known.select(listing, stamper)
            notes.extend(_notes_on_columns(listing) if done else ())
            if mark_deleted and done:
                inputs, incomplete = settings.source.inputs, listing.incomplete()
                gone, remarks = dataset_tables.gone(folder, known, inputs, incomplete, confirm_deleted)
                notes.extend(remarks)
            if not known.comparison.new + known.comparison.changed:
                raise _NothingNewError("nothing is new or changed")

        report = Report(status={}, rows_done=0)
        with Stamper(hash_contents=hash_contents, columns=known.columns) as stamper:
            try:
                planner.plan(settings, target, like=like, select=select, carried=known.carried, accepted=accepted)
                is_new = True
            except _NothingNewError:
                is_new = False
        if is_new:
            _note_highest(folder, [target])
            if like and like.plan().pixels != PIXELS:
                progress = Progress(total=0, done=0, bad=0, quiet=quiet, as_json=log_json)
                progress.say(f"the rules for pixels have changed since {done[-1]}; other scores result for: {MOVED}")
                progress.close()
            report = label(target)
        notes += dataset_tables.keep(folder, known, gone, target if is_new else None)
        if not report["status"].get("ok") and (is_new or done):
            last = RunDir(target if is_new else done[-1])
            causes.check_finished(last, last.plan(), settings.launch.bad_allowed(last.plan().rows))
        rows = known.comparison
        if rows.again:
            notes.append(f"{rows.again} of the changed images are tried again, as their failure may have passed")
        name = str(target) if is_new else None
        increment = Increment(folder=name, new=rows.new, changed=rows.changed, known=rows.known)
        return {**report, "increment": increment, "finished": finished, "notes": [*stamper.notes(), *notes]}


def _notes_on_columns(listing: listings.Listing) -> list[str]:
    """Remarks on columns that only the input has, or only the increments before."""
    notes = []
    if listing.added:
        names = ", ".join(map(repr, listing.added))
        notes.append(
            f"columns that no increment had before: {names}; images that are known do not get them, and some readers "
            "have to be told to join the increments by name"
        )
    if listing.absent:
        notes.append(f"columns that the input does not have any more, so that they are null: {listing.absent}")
    return notes


def increments(folder: Path) -> list[Path]:
    """The run directories of a dataset, oldest first.

    Raises: InputError if `folder` holds something else, or an increment without its `run.json`.
    """
    beside = (_PAGE, LATEST, DELETED, *(name for name in os.listdir(folder) if name.startswith(".")))
    strangers = sorted(name for name in os.listdir(folder) if not INCREMENT.fullmatch(name) and name not in beside)
    if strangers:
        raise InputError(
            f"{folder} holds {strangers[0]!r}, so it is not a dataset of increments: give a new or empty folder as "
            "--out"
        )
    paths = []
    for number in sorted(_numbers(folder)):
        path = folder / _name(number)
        try:
            if RunDir(path).exists():
                paths.append(path)
            elif path.is_dir() and _has_results(path):
                raise InputError(
                    f"{path} holds results but no run.json: restore that file, or delete the folder; images that only "
                    "this increment had are labelled again then"
                )
        except OSError as error:
            raise reading_failed(str(path), error) from error
    return paths


def each(source: str, out: str) -> list[tuple[str, str]]:
    """For each run in `source`, the run and the output for it: `out` for a single run, and for a dataset a folder in
    `out` with the name of the increment. Raises: InputError as `increments` does."""
    if not os.path.isdir(source) or RunDir(source).exists() or not any(map(INCREMENT.fullmatch, os.listdir(source))):
        return [(source, out)]
    return [(str(path), os.path.join(out, path.name)) for path in increments(Path(source))]


def is_dataset(place: str) -> bool:
    """Whether `place` is a folder on a disk with increments."""
    return [run for run, _ in each(place, "")] != [place] and os.path.isdir(place)


def follow(source: str, out: str) -> list[str]:
    """Give `out` the tables of latest and deleted rows, if it is a dataset that was made by rescoring `source`. Returns
    remarks for the user."""
    if is_dataset(source) and is_dataset(out):
        return dataset_tables.follow(Path(source), Path(out), increments(Path(out)))
    return []


def runs_in(place: str) -> list[str]:
    """The run directories that `place` stands for: a run itself, or the increments of a dataset, oldest first.

    Raises: InputError as `increments` does, and if a dataset holds none.
    """
    runs = [run for run, _ in each(place, "")]
    if not runs:
        raise InputError(f"{place} holds no increment yet: clipbatch run INPUT --incremental --out {place} makes one")
    return runs


def _name(number: int) -> str:
    return f"increment-{number:05d}"


def _numbers(folder: Path) -> list[int]:
    """The numbers of all entries with the name of an increment, whatever they are."""
    return [int(match[1]) for match in map(INCREMENT.fullmatch, os.listdir(folder)) if match]


def _next_number(folder: Path) -> int:
    """The next number. A folder that was left by a killed planner and has no plan is used again."""
    highest = _highest(folder)
    last = max([highest, *_numbers(folder)])
    return last if last > highest and _is_unplanned(folder / _name(last)) else last + 1


def _highest(folder: Path) -> int:
    """The highest number that any increment has had, if that was noted; 0 otherwise."""
    with contextlib.suppress(OSError, ValueError):  # datasets of older versions have no such file
        return int((folder / _HIGHEST).read_bytes())
    return 0


def _note_highest(folder: Path, paths: list[Path]) -> None:
    """Note the highest number of the increments in `paths`, unless a higher one is noted."""
    number = max((int(path.name.removeprefix("increment-")) for path in paths), default=0)
    if number > _highest(folder):
        with publish(folder / _HIGHEST) as file:
            file.write(b"%d\n" % number)


def _is_unplanned(path: Path) -> bool:
    """Whether the folder holds nothing but pieces of a plan, which the next planner removes."""
    run = RunDir(path)
    ours = path.is_dir() and not path.is_symlink() and not run.exists()
    return ours and not _has_results(path) and creation.foreign_entry(run) is None


def _has_results(path: Path) -> bool:
    run = RunDir(path)
    return run.model_file.exists() or bool(list_names(run.parts))


def _is_complete(path: Path) -> bool:
    run = RunDir(path)
    plan = run.plan()
    return len(run.done(plan)) == plan.shards
