"""The commands run, rescore, compact and verify as functions. `plan` and `status` have modules of their own."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clipbatch.config import MOVED, PIXELS, Settings, from_flat
from clipbatch.config.labels import remarks
from clipbatch.errors import ClipbatchError, InputError, InterruptedRunError, NothingLabelledError
from clipbatch.rundir import activity, damage, replacement
from clipbatch.rundir import verify as verifier
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import announce, causes, report
from clipbatch.runs import compact as compactor
from clipbatch.runs import flat as flattener
from clipbatch.runs import rescore as rescorer
from clipbatch.runs.copying import Compacted
from clipbatch.runs.plan import plan
from clipbatch.runs.report import Report
from clipbatch.runs.warnings import device_remark
from clipbatch.storage.atomic import remove_leftovers
from clipbatch.storage.paths import as_path
from clipbatch.workers import ranks
from clipbatch.workers import supervisor as launch
from clipbatch.workers.engine import Engine, check_trace, numbered
from clipbatch.workers.helping import Helper
from clipbatch.workers.progress import Log, Observer, Progress, check_bad
from clipbatch.workers.ranks import Rank
from clipbatch.workers.scheduler import Assignment
from clipbatch.workers.tally import Limits


def engine(settings: Settings, rank: Rank) -> Engine:
    """The engine that `settings` name. The caller closes it. rank: of this process among those that share the run.

    Raises: InputError if the engine cannot be used here, or settings of devices contradict each other.
    """
    if settings.launch.engine == "ray":
        from clipbatch.workers.ray.engine import RayEngine

        return RayEngine(settings)
    from clipbatch.workers.engine import LocalEngine

    return LocalEngine(settings, rank)


def run(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    retry_bad: bool = False,
    repair: bool = False,
    force: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    log_json: bool = False,
    observer: Observer | None = None,
    judge: bool = True,
) -> Report:
    """Label the images of `settings` into the run directory `out`. Parts that exist are not made again.

    settings: without inputs: continue the run in `out` as it was planned. Their `launch` says where workers run, and
    for which part of the run this process is responsible. retry_bad: also do the rows of finished parts that have no
    scores. repair: first verify the parts, and make damaged ones again. A damaged part stays until its new part exists;
    it also stays if the new part has fewer ok rows (`replacement`), unless `force`. log_json: show progress as JSON
    lines. observer: is told of the progress too. judge: whether a complete run without an ok row is an error. Returns
    the report, as in `report.json`.
    Raises: InputError, TooManyBadError, InterruptedRunError; NothingLabelledError if none of the first images is ok, or
    none of the whole run; DamagedError if a damaged part was kept, or files of the run have been deleted. Whatever
    happens, there is never an incomplete part.
    """
    if force and not repair:
        raise InputError("--force is for --repair, which may then replace any part: add --repair, or leave --force out")
    start, log = time.perf_counter(), Log(quiet=quiet, as_json=log_json)
    started = functools.partial(announce.start, log, settings, out)
    rank = ranks.find(settings.launch, os.environ)
    check_trace(settings.launch.profile)
    settings = settings.replace(profile=numbered(settings.launch.profile, "rank", rank.number, rank.world))
    with contextlib.closing(engine(settings, rank)) as workers:
        settings = settings.replace(device=workers.device)
        frozen = plan(settings, out, overwrite=overwrite, accepted=started)
        run_dir = RunDir(out)
        damage.protect(run_dir, frozen)
        shards = ranks.named_shards(settings.launch.shards, frozen.shards)
        mine = rank.part(shards)
        remove_leftovers(run_dir.path)
        remove_leftovers(run_dir.parts)
        activity.tidy(run_dir)
        damaged = {shard for shard, _ in _problems(run_dir, frozen, mine)} if repair else set()
        for shard in damaged:
            run_dir.remove_folder_of_part(shard, frozen)
        run_dir.make_parts()
        again = {shard: Assignment(shard=shard, again=True, force=force) for shard in damaged}

        def progress(**known: int) -> Progress:
            made = Progress(quiet=quiet, as_json=log_json, observer=observer, **known)
            announce.planned(made, frozen, str(run_dir.path), total=known["total"], done=made.done)
            return made

        with announce.failure(log, start):
            report = label(
                settings, run_dir, frozen, workers, rank, shards, start, progress, again=again, retry_bad=retry_bad
            )
            if judge and frozen.rescored is None and not report["status"].get("ok"):
                causes.check_finished(run_dir, frozen, settings.launch.bad_allowed(frozen.rows))
        return report


def label(
    settings: Settings,
    run_dir: RunDir,
    frozen: Plan,
    workers: Engine,
    rank: ranks.Rank,
    shards: list[int],
    start: float,
    progress_of: Callable[..., Progress],
    *,
    again: Mapping[int, Assignment],
    retry_bad: bool,
) -> Report:
    """Do what is open of this rank's part of `shards`, then help the other ranks, and make the report. start: of this
    invocation, in seconds of time.perf_counter(). again: the assignments for shards whose part is damaged.

    The report, the limit of bad images and the exit code are those of this rank's part. So a signal that ends the
    process while it helps is no failure.
    """
    mine, finished = rank.part(shards), run_dir.done(frozen) - again.keys()
    helper = Helper(run_dir, frozen, rank, shards, finished)
    assignments = [again.get(shard, Assignment(shard=shard)) for shard in mine if shard not in finished]
    counted = finished.intersection(mine) if retry_bad or settings.launch.max_bad is not None else ()
    known = count_statuses(run_dir, frozen, counted) if counted else {}
    bad = {shard: sum(counts.values()) - counts.get("ok", 0) for shard, counts in sorted(known.items())}
    if retry_bad:
        retries = {shard: replacement.bad_rows(run_dir, frozen, shard) for shard in bad if bad[shard]}
        assignments += [Assignment(shard=shard, rows=rows) for shard, rows in retries.items() if rows]
        bad = {}
    total, still_open = (sum(len(frozen.shard_rows(s)) for s in shards) for shards in (mine, set(mine) - finished))
    retried = sum(len(a.rows) for a in assignments if a.rows is not None)
    progress = progress_of(total=total, done=total - still_open - retried, bad=sum(bad.values()))
    allowed = settings.launch.bad_allowed(total)
    any_ok = not retry_bad and frozen.rescored is None and (allowed is None or allowed < total)
    limits = Limits(bad=allowed, any_ok=any_ok and not causes.others_have_ok(run_dir))
    supervisor = launch.Supervisor(run_dir, frozen, settings.runtime(), workers, progress, helper, limits)

    def make_report() -> Report:
        return report.make(run_dir, frozen, supervisor.done, time.perf_counter() - start, rank, mine, again)

    for remark in [*remarks(frozen.labels), device_remark(frozen, settings)] if assignments else ():
        if remark:
            progress.say(remark)
    if assignments and frozen.pixels != PIXELS and frozen.rescored is None:
        progress.say(
            f"{run_dir.path} was planned by an older version and is finished with its rules for pixels; a new run "
            f"treats these images differently: {MOVED}"
        )
    try:
        try:
            supervisor.work(assignments)
        except InterruptedRunError as error:
            if helper.alone or supervisor.lacks(assignments):
                raise
            progress.say(f"{error}; the part of this rank is done, and it was helping the others")
        report.check_nothing_vanished(run_dir, frozen, mine)
    except ClipbatchError as error:
        with contextlib.suppress(ClipbatchError):  # the first error is the one to show
            make_report()
        if isinstance(error, NothingLabelledError):
            raise causes.explained(error, run_dir, frozen) from error
        raise
    finally:
        progress.close()
        remove_leftovers(run_dir.parts)  # the unfinished parts of workers that were killed
    result = make_report()
    report.check_repaired(run_dir, supervisor.done, again)
    check_bad(result["rows_done"] - result["status"].get("ok", 0), allowed, run_dir)
    return result


def rescore(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overrides: Mapping[str, Any],
    *,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> Report:
    """Score the saved embeddings of the run in `source` with other labels, into the run directory `out`.

    overrides: settings by name: `labels`, `template`, and settings of the output. Returns the report, as `run` does.
    Raises: InputError if `source` has no embeddings, is not finished, or is damaged; OtherRunError as `plan` does.
    """
    rescorer.plan(RunDir(source), RunDir(out), overrides, overwrite=overwrite)
    return run(from_flat({"device": device}), out, quiet=quiet)


def compact(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, rows_per_file: int | None = None, flat: bool = False
) -> Compacted:
    """Copy the finished run in `source` into the run directory `out`, whose parts are few and large, and verify it.

    rows_per_file: the maximum of rows in a part; but a part holds whole parts of `source`, and at least one; None: as
    many as have about 512 MiB. flat: write the files into `out` itself, and nothing else of the run. Returns how many
    files there are.
    Raises: InputError if the run is not finished, or `out` holds other files; OtherRunError if it is another run;
    DamagedError for damaged parts.
    """
    if flat:
        return flattener.compact(RunDir(source), as_path(out), rows_per_file)
    return compactor.compact(RunDir(source), RunDir(out), rows_per_file)


def verify(out: str | os.PathLike[str]) -> tuple[Plan, list[tuple[int, str]]]:
    """The plan of the run in `out`, and the number of each missing or damaged shard with the problem in words."""
    run_dir = RunDir(out)
    frozen = run_dir.plan()
    return frozen, _problems(run_dir, frozen, range(frozen.shards))


def _problems(run_dir: RunDir, frozen: Plan, shards: Iterable[int]) -> list[tuple[int, str]]:
    if run_dir.done(frozen) and run_dir.model_facts() is None:
        raise InputError(f"{run_dir.model_file} does not exist, and without it no part can be checked: restore it")
    verifier.check_plan(run_dir, frozen)
    return list(verifier.problems(run_dir, frozen, shards))
