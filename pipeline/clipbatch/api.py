"""What the commands do, as functions of Python: plan, run, status, verify, demo."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbatch import catalog, launch, report, source
from clipbatch import labels as label_files
from clipbatch import plan as planner
from clipbatch import verify as verifier
from clipbatch.atomic import remove_leftovers
from clipbatch.config import Settings, from_flat
from clipbatch.errors import ClipbatchError, InputError, TooManyBadError
from clipbatch.labels import LabelSet
from clipbatch.progress import Progress
from clipbatch.rundir import Plan, RunDir
from clipbatch.schema import result_fields
from clipbatch.uris import is_url


def plan(settings: Settings, out: str | os.PathLike[str], *, overwrite: bool = False) -> Plan:
    """Freeze the input of `settings` into the run directory `out`, or find that it is there already.

    Settings without inputs take up the run in `out` as it is.
    Raises: InputError where something is refused; OtherRunError where `out` belongs to a run with other settings.
    """
    run_dir = RunDir(out)
    if not settings.source.inputs:
        if overwrite:
            raise InputError("--overwrite begins a run anew, so it needs an INPUT")
        return run_dir.plan()
    names = label_files.load(settings.labels)
    settings = settings.replace(model=catalog.canonical(settings.model.model))
    catalog.check_weights(settings.model.pretrained)
    inputs = source.listers(settings.source)
    identities = [lister.identity() for lister in inputs]
    if run_dir.exists() and not overwrite:
        frozen = run_dir.plan()
        if run_dir.model_facts() is not None or run_dir.done(frozen):
            run_dir.check_same(frozen, planner.identity(_resolve(settings, frozen.identity), names, identities))
            return frozen
        # else no worker has ever loaded a model here, so nothing is lost by planning again
    return _freeze(run_dir, _resolve(settings, {}), names, identities, inputs)


def _resolve(settings: Settings, frozen: Mapping[str, Any]) -> Settings:
    weights = settings.model.pretrained or catalog.default_weights(settings.model.model)
    if weights and os.path.isfile(weights):
        weights = os.path.abspath(weights)
    root = settings.source.root
    if root and not is_url(root):
        root = os.path.abspath(root)
    return planner.resolve(settings.replace(pretrained=weights, root=root), catalog.gflop(settings.model.model), frozen)


def _freeze(
    run_dir: RunDir, settings: Settings, names: LabelSet, identities: list[str], inputs: list[source.Lister]
) -> Plan:
    results = [field.name for field in result_fields(names.names, settings.output, 0)]
    listing = source.Listing(inputs, settings.source.limit, [*results, "row_id"])
    return planner.freeze(
        run_dir,
        settings,
        names,
        identities,
        listing.batches(),
        listing.passed_over,
    )


def run(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    retry_bad: bool = False,
    repair: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Label the images of `settings` into the run directory `out`, doing only what is not done yet.

    settings: without inputs, to go on with the run in `out` as it is. retry_bad: also the rows without scores of
    finished parts. repair: first verify all parts, and do damaged ones again. Returns the report, as in `report.json`.
    Raises: InputError, TooManyBadError, InterruptedRunError; whatever happens, no part is ever half-written.
    """
    begun = time.perf_counter()
    frozen = plan(settings, out, overwrite=overwrite)
    run_dir = RunDir(out)
    remove_leftovers(run_dir.path)
    remove_leftovers(run_dir.parts)
    if repair:
        for shard, _ in verify(out)[1]:
            run_dir.remove_part(shard, frozen)
    run_dir.make_parts()
    finished = run_dir.done(frozen)
    assignments = [launch.Assignment(shard=shard) for shard in range(frozen.shards) if shard not in finished]
    if retry_bad:
        assignments += _bad_rows(run_dir, frozen, finished)
    again = sum(len(a.rows) for a in assignments if a.rows is not None)
    open_rows = sum(len(frozen.shard_rows(a.shard)) for a in assignments if a.rows is None)
    progress = Progress(total=frozen.rows, done=frozen.rows - open_rows - again, quiet=quiet)
    if settings.max_bad is not None:
        counts = [report.part_counts(run_dir, frozen, shard) for shard in finished]
        progress.bad = sum(sum(c.values()) - c.get("ok", 0) for c in counts) - again
    supervisor = launch.Supervisor(run_dir, frozen, settings, [planner.device_of(settings)], progress)
    try:
        supervisor.work(assignments)
    except ClipbatchError:
        with contextlib.suppress(ClipbatchError):  # the reason why the run ended is what counts
            report.write(run_dir, frozen, supervisor.done, time.perf_counter() - begun)
        raise
    finally:
        progress.close()
    made = report.write(run_dir, frozen, supervisor.done, time.perf_counter() - begun)
    bad, allowed = made["rows_done"] - made["status"].get("ok", 0), settings.bad_allowed(frozen.rows)
    if allowed is not None and bad > allowed:
        raise TooManyBadError(launch.too_many_bad(bad, allowed, run_dir))
    return made


def _bad_rows(run_dir: RunDir, frozen: Plan, finished: set[int]) -> list[launch.Assignment]:
    """The rows without scores in finished parts, as assignments of their own."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found = []
    for shard in sorted(finished):
        counts = report.part_counts(run_dir, frozen, shard)
        if counts.get("ok", 0) < sum(counts.values()):
            table = pq.read_table(run_dir.part(shard, frozen.shards), columns=["row_id", "status"])
            bad = table.filter(pc.not_equal(table["status"].cast("string"), "ok"))
            found.append(launch.Assignment(shard=shard, rows=tuple(bad["row_id"].to_pylist())))
    return found


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
    if run_dir.done(frozen) and run_dir.model_facts() is None:
        raise InputError(f"{run_dir.model_file} is gone, without which no part can be checked: restore it")
    return frozen, list(verifier.problems(run_dir, frozen))


def demo(out: str | os.PathLike[str], *, quiet: bool = False) -> str:
    """Label the sample images with the embedded model; returns what there is to see, as text."""
    images = importlib.resources.files("clipbatch") / "demo" / "images"
    settings = from_flat({"inputs": [str(images)], "labels": "cifar10", "model": catalog.DEMO})
    try:
        made = run(settings, out, quiet=quiet)
    except InputError as error:
        raise InputError(f"{error} (the demo writes to {out}: choose another folder with --out)") from error
    return _table(RunDir(out)) + "\n\n" + report.summary(RunDir(out), made)


def _table(run_dir: RunDir) -> str:
    """All rows of a small run: file, label, score, status."""
    import pyarrow.parquet as pq

    rows = pq.read_table(run_dir.parts, columns=["uri", "label", "score", "status", "error"]).to_pylist()
    lines = [f"{'image':28} {'label':12} {'score':>5}  status"]
    for row in rows:
        label, score = (row["label"], f"{row['score']:.2f}") if row["status"] == "ok" else ("-", "-")
        what = row["status"] if row["status"] == "ok" else f"{row['status']}: {row['error']}"
        lines.append(f"{Path(row['uri']).name:28} {label:12} {score:>5}  {what}"[:118])
    return "\n".join(lines)
