"""Plans a run: resolves `auto` settings, numbers the rows of the input, cuts them into shards, computes fingerprints.

The planner does not open images. A run directory appears as a whole (`rundir.creation`): the manifest is written in
another folder and renamed into place, and `run.json` comes last. So a planner that is killed leaves nothing that counts
as a run.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import pyarrow as pa

from clipbatch import __version__
from clipbatch.config import PIXELS, LaunchSettings, Settings, auto, head_files, models
from clipbatch.config import heads as head_records
from clipbatch.config import labels as label_files
from clipbatch.config.auto import worth_compiling
from clipbatch.config.heads import HeadFile
from clipbatch.config.label_set import LabelSet
from clipbatch.config.nesting import JsonObject
from clipbatch.config.validation import SettingError
from clipbatch.errors import InputError, OtherRunError
from clipbatch.inputs import lister
from clipbatch.inputs import listing as listings
from clipbatch.inputs.sample import Sample
from clipbatch.rundir import creation, head_weights
from clipbatch.rundir.captions import CaptionColumn
from clipbatch.rundir.duplicates import Duplicates
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import ManifestWriter
from clipbatch.rundir.records import ModelFacts, frozen_choices
from clipbatch.rundir.schema import STAMPS
from clipbatch.runs import heads as run_heads
from clipbatch.runs import resolving
from clipbatch.workers import signals

# Files that were passed over are counted for this many suffixes, and the rest together.
_SUFFIXES = 20
# The names that a rescoring of a run without labels gives to its columns of labels.
_LABEL_COLUMNS = ("label", "score", "labels", "margin", "scores", "top")
# At most so many rows in a file and in a row group of the manifest, unless a shard has more.
MANIFEST_ROWS = 2**20
ROW_GROUP_ROWS = 2**14

# The names of DALI's package, by the version of CUDA that it was built for. One of them is installed.
DALI = tuple(f"nvidia-dali-cuda{major}0" for major in range(11, 20))
# The packages that decide pixels and scores.
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", *DALI, "pillow", "pyarrow", "numpy")


def identity(settings: Settings, labels: LabelSet, inputs: list[str], heads: Sequence[HeadFile] = ()) -> JsonObject:
    """The fields of a run's identity: two runs with the same fields are the same run. inputs: identities of listers."""
    of_heads = head_records.identity([file.head for file in heads])
    return settings.within("identity", "output") | {"inputs": inputs} | labels.identity() | of_heads


def manifest_rows(shard_size: int) -> int:
    """Rows in a file of the manifest: whole shards."""
    return shard_size * max(1, MANIFEST_ROWS // shard_size)


def row_group_rows(shard_size: int) -> int:
    """Rows in a row group of the manifest: whole shards."""
    return shard_size * max(1, ROW_GROUP_ROWS // shard_size)


def freeze(
    run: RunDir,
    settings: Settings,
    labels: LabelSet,
    inputs: list[str],
    rows: Iterable[pa.RecordBatch],
    passed_over: Callable[[], Counter[str]],
    *,
    heads: Sequence[HeadFile] = (),
    replace: bool = False,
    fitted: ModelFacts | None = None,
    device: str | None = None,
) -> Plan:
    """Write the manifest and `run.json` of a new run. Returns the plan, or that of a process that was faster.

    rows: the listing, with the same columns in every batch. passed_over: called after the listing has ended. replace:
    delete the existing run. fitted, device: as in `Plan`; device None: that of `settings`.
    Raises: InputError if the folder cannot be written or the listing refuses its input; nothing stays behind then.
    OtherRunError if another process was faster and has other settings.
    """
    assert settings.output.shard_size
    assert settings.model.batch_size
    if settings.output.shard_size % settings.model.batch_size:
        raise SettingError(
            f"shard_size {settings.output.shard_size} is not a multiple of batch_size {settings.model.batch_size}"
        )
    shard_size = settings.output.shard_size
    per_file, row_group = manifest_rows(shard_size), row_group_rows(shard_size)
    with creation.staged(run) as folder:
        duplicates, writer = Duplicates(), ManifestWriter(folder, per_file, row_group)
        with writer, ThreadPoolExecutor(1, thread_name_prefix="duplicates") as pool:
            for batch in rows:
                signals.check()
                added = pool.submit(duplicates.add, batch["uri"])  # both work mostly without the interpreter's lock
                writer.write(batch)
                added.result()
        if settings.model.compile == "auto":
            gains = worth_compiling(settings, writer.rows, models.gflop(settings.model.model))
            settings = settings.replace(compile="on" if gains else "off")
        plan = Plan(
            rows=writer.rows,
            identity=identity(settings, labels, inputs, heads),
            settings=settings.flat(),
            manifest_rows=per_file,
            manifest_sha256=writer.digests,
            duplicates=duplicates.count(),
            passed_over=_most_frequent(passed_over()),
            versions=versions(),
            fitted=fitted,
            device=device or auto.device_of(settings).partition(":")[0],
        )
        valid = creation.create(run, plan, folder, replace=replace, heads=head_weights.content(heads))
    run.check_same(valid, plan.identity)
    return valid


@functools.cache
def versions() -> dict[str, str]:
    """The versions of clipbatch, Python and `PACKAGES`."""
    installed = {"clipbatch": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _most_frequent(total: Counter[str]) -> dict[str, int]:
    """Counts by suffix. Notes of the listing are kept too; they are in parentheses, which suffixes never are."""
    notes = Counter({key: count for key, count in total.items() if key.startswith("(")})
    suffixes = total - notes
    named = {suffix or "(no suffix)": count for suffix, count in suffixes.most_common(_SUFFIXES)}
    rest = sum(suffixes.values()) - sum(named.values())
    return named | ({"(others)": rest} if rest else {}) | dict(notes.most_common(_SUFFIXES))


Select = Callable[[listings.Listing], Iterator[pa.RecordBatch]]


def plan(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    like: RunDir | None = None,
    select: Select | None = None,
    carried: pa.Schema | None = None,
    accepted: Callable[[], None] = lambda: None,
) -> Plan:
    """Freeze the input of `settings` into the run directory `out`, or return the plan that it has already.

    Settings without inputs: return the plan in `out`. If `out` already holds a plan with the same settings, that plan
    is used. A plan with other settings is replaced if no worker has loaded a model for it yet. like: every setting
    except the input and the rules for pixels must equal that run's, and the new run takes over what the first worker of
    that one chose and measured. select: chooses rows of the listing, and may add columns; only for a new run. carried:
    as for `Listing`. accepted: called when settings and names of inputs have been checked, before the input of a new
    run is listed, which may take long.
    Raises: InputError if something is refused; OtherRunError if `out` belongs to a run with other settings or, with
    `select`, to any run.
    """
    run_dir = RunDir(out)
    if not settings.source.inputs:
        if overwrite:
            raise InputError("--overwrite plans the run again and needs an INPUT: name one, or leave --overwrite out")
        frozen = run_dir.plan()
        accepted()
        return frozen
    names = label_files.for_run(settings)
    settings = dataclasses.replace(resolving.checked(settings), launch=LaunchSettings())
    heads = head_files.load(settings.labels.head, head_weights.standing(run_dir, overwrite=overwrite))
    inputs = listings.listers(settings.source)
    replace = overwrite
    if run_dir.exists() and select:
        raise OtherRunError(f"another process has made {run_dir.path} a run meanwhile: run the same command again")
    if run_dir.exists() and not overwrite:
        if same := _same(settings, names, heads, inputs, run_dir):
            accepted()
            return same
        replace = True
    fitted = None
    resolved = resolving.resolve_as(settings, like.plan().identity if like else {})
    if like:
        names = names.by_rules((frozen := like.plan()).labels.scoring)
        same_inputs = identity(resolved, names, frozen.identity["inputs"], heads)
        like.check_same(frozen, same_inputs, may_overwrite=False)
        resolved, facts = resolved.replace(pixels=PIXELS), like.model_facts()
        fitted = None if facts is None else frozen_choices(facts)
    else:
        resolving.check_labels(resolved, names)
        run_heads.check(resolved, names, heads)
    device = like.plan().device if like else None
    return _freeze(run_dir, resolved, names, heads, inputs, replace, select, fitted, device, carried, accepted)


def existing(settings: Settings, run_dir: RunDir) -> Plan | None:
    """The plan that `run_dir` has, if it fits `settings`; None if `plan` would replace it. Changes nothing.

    Raises: InputError as `plan` does; OtherRunError if `run_dir` belongs to a run with other settings.
    """
    if not settings.source.inputs:
        return run_dir.plan()
    names = label_files.for_run(settings)
    settings = dataclasses.replace(resolving.checked(settings), launch=LaunchSettings())
    heads = head_files.load(settings.labels.head, head_weights.standing(run_dir, overwrite=False))
    return _same(settings, names, heads, listings.listers(settings.source), run_dir)


def _same(
    settings: Settings, names: LabelSet, heads: Sequence[HeadFile], inputs: list[lister.Lister], run_dir: RunDir
) -> Plan | None:
    frozen = run_dir.plan()
    identities = listings.identities(inputs, frozen.identity.get("inputs", ()))
    try:
        as_then = names.by_rules(frozen.labels.scoring)
        run_dir.check_same(
            frozen, identity(resolving.resolve_as(settings, frozen.identity), as_then, identities, heads)
        )
    except OtherRunError:
        if run_dir.model_facts() is not None or run_dir.done(frozen):
            raise
        return None
    return None if run_heads.gives_way(run_dir, frozen, settings) else frozen


def listing_of(
    settings: Settings,
    names: LabelSet,
    inputs: list[lister.Lister],
    heads: Sequence[HeadFile],
    carried: pa.Schema | None = None,
) -> listings.Listing:
    """What the run of `settings` is to label. carried: as for `Listing`.

    Raises: InputError, also if no column holds the captions.
    """
    spec, source = settings.source.caption_column, settings.source
    results = run_heads.result_names(settings, names, heads)
    taken = [*results, "row_id", *(f.name for f in STAMPS), *(() if names.groups else _LABEL_COLUMNS)]
    sample = Sample(source.sample, source.seed or 0) if source.sample else None
    listing = listings.Listing(inputs, source.limit, taken, sample, carried)
    if spec is not None:
        CaptionColumn.find(spec, listing.schema)
    return listing


def _freeze(
    run_dir: RunDir,
    settings: Settings,
    names: LabelSet,
    heads: Sequence[HeadFile],
    inputs: list[lister.Lister],
    replace: bool,
    select: Select | None,
    fitted: ModelFacts | None,
    device: str | None,
    carried: pa.Schema | None,
    accepted: Callable[[], None],
) -> Plan:
    listing = listing_of(settings, names, inputs, heads, carried)
    accepted()
    identities = listings.identities(inputs)  # reads manifests, which may take long
    return freeze(
        run_dir,
        settings,
        names,
        identities,
        select(listing) if select else listing.batches(),
        listing.passed_over,
        heads=heads,
        replace=replace,
        fitted=fitted,
        device=device,
    )
