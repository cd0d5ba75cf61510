"""What the commands do, as functions of Python: plan, run, rescore, compact, fetch, status, verify.

Where workers run: on this machine (`local`), or on a Ray cluster (`ray_engine`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clipbatch.config import MOVED, PIXELS, Settings, from_flat
from clipbatch.config.labels import remarks
from clipbatch.errors import ClipbatchError, InputError, TooManyBadError
from clipbatch.rundir import damage, replacement
from clipbatch.rundir import verify as verifier
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.runs import compact as compactor
from clipbatch.runs import report
from clipbatch.runs import rescore as rescorer
from clipbatch.runs.plan import plan
from clipbatch.storage.atomic import remove_leftovers
from clipbatch.storage.paths import as_path
from clipbatch.workers import ranks
from clipbatch.workers import supervisor as launch
from clipbatch.workers.engine import Engine, check_trace, numbered
from clipbatch.workers.progress import Progress
from clipbatch.workers.ranks import Rank
from clipbatch.workers.scheduler import Assignment


def engine(settings: Settings, rank: Rank) -> Engine:
    """The engine that `settings` name; to be closed. rank: of this process among those that share the run.

    Raises: InputError where it cannot be had, or devices contradict one another.
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
) -> dict[str, Any]:
    """Label the images of `settings` into the run directory `out`, doing only what is not done yet.

    settings: without inputs, to go on with the run in `out` as it is; their `launch` says where to work, and which part
    of the run is done here and answered for. retry_bad: also the rows without scores of finished parts. repair: first
    verify the parts, and do damaged ones again; each stays until its new part is there, and after that, too, where the
    new one has fewer ok rows (`replacement`), unless `force`. log_json: progress as JSON lines. Returns the report, as
    in `report.json`.
    Raises: InputError, TooManyBadError, InterruptedRunError; DamagedError where a damaged part has been kept, or files
    of the run have vanished; whatever happens, no part is ever half-written.
    """
    if force and not repair:
        raise InputError("--force says what --repair may replace: add that, or leave it out")
    begun = time.perf_counter()
    rank = ranks.find(settings.launch, os.environ)
    check_trace(settings.launch.profile)
    settings = settings.replace(profile=numbered(settings.launch.profile, "rank", rank.number, rank.world))
    with contextlib.closing(engine(settings, rank)) as workers:
        settings = settings.replace(device=workers.device)
        frozen = plan(settings, out, overwrite=overwrite)
        run_dir = RunDir(out)
        damage.protect(run_dir, frozen)
        mine = rank.part(ranks.named_shards(settings.launch.shards, frozen.shards))
        remove_leftovers(run_dir.path)
        remove_leftovers(run_dir.parts)
        damaged = {shard for shard, _ in _problems(run_dir, frozen, mine)} if repair else set()
        for shard in damaged:
            run_dir.remove_folder_of_part(shard, frozen)
        run_dir.make_parts()
        again = {shard: Assignment(shard=shard, again=True, force=force) for shard in damaged}
        progress = functools.partial(Progress, quiet=quiet, as_json=log_json)
        return label(settings, run_dir, frozen, workers, rank, mine, begun, progress, again=again, retry_bad=retry_bad)


def label(
    settings: Settings,
    run_dir: RunDir,
    frozen: Plan,
    workers: Engine,
    rank: ranks.Rank,
    mine: list[int],
    begun: float,
    progress_of: Callable[..., Progress],
    *,
    again: Mapping[int, Assignment],
    retry_bad: bool,
) -> dict[str, Any]:
    """Do what is not done of the shards `mine`; returns the report. begun: when the invocation began. again: what is to
    be done of shards whose part is damaged."""
    finished = run_dir.done(frozen) - again.keys()
    assignments = [again.get(shard, Assignment(shard=shard)) for shard in mine if shard not in finished]
    counted = finished.intersection(mine) if retry_bad or settings.max_bad is not None else ()
    known = count_statuses(run_dir, frozen, counted) if counted else {}
    bad = {shard: sum(counts.values()) - counts.get("ok", 0) for shard, counts in sorted(known.items())}
    if retry_bad:
        retries = {shard: replacement.bad_rows(run_dir, frozen, shard) for shard in bad if bad[shard]}
        assignments += [Assignment(shard=shard, rows=some) for shard, some in retries.items() if some]
        bad = {}
    rows, open_rows = (sum(len(frozen.shard_rows(s)) for s in some) for some in (mine, set(mine) - finished))
    retried = sum(len(a.rows) for a in assignments if a.rows is not None)
    progress = progress_of(total=rows, done=rows - open_rows - retried, bad=sum(bad.values()))
    allowed = settings.bad_allowed(rows)
    supervisor = launch.Supervisor(run_dir, frozen, settings.runtime(), workers, progress, allowed)

    def reported() -> dict[str, Any]:
        return report.make(run_dir, frozen, supervisor.done, time.perf_counter() - begun, rank, mine, again)

    for remark in remarks(frozen.labels) if assignments else ():
        progress.say(remark)
    if assignments and frozen.pixels != PIXELS and frozen.rescored is None:
        progress.say(
            f"{run_dir.path} was begun by an older version and is finished by its rules for pixels; a new run has "
            f"others of: {MOVED}"
        )
    try:
        supervisor.work(assignments)
        report.check_nothing_vanished(run_dir, frozen, mine)
    except ClipbatchError:
        with contextlib.suppress(ClipbatchError):  # the reason why the run ended is what counts
            reported()
        raise
    finally:
        progress.close()
        remove_leftovers(run_dir.parts)  # what a worker that was ended had not published
    made = reported()
    report.check_mended(run_dir, supervisor.done, again)
    found = made["rows_done"] - made["status"].get("ok", 0)
    if allowed is not None and found > allowed:
        raise TooManyBadError(launch.too_many_bad(found, allowed, run_dir))
    return made


def rescore(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    given: Mapping[str, Any],
    *,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score the embeddings that the run in `source` has saved with other labels, into the run directory `out`.

    given: settings by name: `labels`, `template`, and of the output. Returns the report, as `run` does.
    Raises: InputError where `source` has no embeddings, is not finished, or is damaged; OtherRunError as `plan` does.
    """
    rescorer.plan(RunDir(source), RunDir(out), given, overwrite=overwrite)
    return run(from_flat({"device": device}), out, quiet=quiet)


def compact(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, rows_per_file: int | None = None
) -> dict[str, Any]:
    """Copy the parts of the finished run in `source` into few big files in the folder `out`, and verify them.

    rows_per_file: at most so many, though a file holds whole parts, one at least. Returns what there is then.
    Raises: InputError where the run is not finished or `out` holds other files; DamagedError for damaged parts.
    """
    return compactor.compact(RunDir(source), as_path(out), rows_per_file)


def status(out: str | os.PathLike[str]) -> dict[str, Any]:
    """How far the run in `out` is. Raises: InputError where there is none."""
    run_dir = RunDir(out)
    frozen = run_dir.plan()
    finished = run_dir.done(frozen)
    rows = sum(len(frozen.shard_rows(shard)) for shard in finished)
    return {
        "rows": frozen.rows,
        "rows_done": rows,
        "parts": frozen.shards,
        "parts_done": len(finished),
        "complete": len(finished) == frozen.shards,
        "model": frozen.settings["model"],
        "fingerprint": run_dir.fingerprint() or "(no worker has loaded the model yet)",
    }


def verify(out: str | os.PathLike[str]) -> tuple[Plan, list[tuple[int, str]]]:
    """The plan of the run in `out`, and each shard that is missing or damaged with what is wrong with it."""
    run_dir = RunDir(out)
    frozen = run_dir.plan()
    return frozen, _problems(run_dir, frozen, range(frozen.shards))


def _problems(run_dir: RunDir, frozen: Plan, shards: Iterable[int]) -> list[tuple[int, str]]:
    if run_dir.done(frozen) and run_dir.model_facts() is None:
        raise InputError(f"{run_dir.model_file} is gone, without which no part can be checked: restore it")
    verifier.check_plan(run_dir, frozen)
    return list(verifier.problems(run_dir, frozen, shards))
