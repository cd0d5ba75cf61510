"""Judges a run in which nothing worked, and says what the likely cause is.

A cause is a guess from a few rows, made when there is nothing else to say: where the names were looked for, where files
of these names exist, and what the first error was. It opens no image.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipbatch.errors import ClipbatchError, NothingLabelledError
from clipbatch.inputs.lister import is_text_type
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import INCREMENT, RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.storage.failures import of_text
from clipbatch.storage.paths import parquet_source
from clipbatch.storage.uris import folder_of, is_data_uri, is_url, path_of
from clipbatch.types import counts_text

_REMEDY = (
    "Correct the command and {again}, or put the images back and {retry}; if these are to be bad rows, give --max-bad "
    "100%"
)
# Rows that a guess is made from.
_ROWS = 20
# Folders beside the manifest that are tried as --root.
_FOLDERS = 200
# What tells that somebody has credentials for a store; by its scheme.
_CREDENTIALS = {
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"), "~/.aws/credentials"),
    "gs": (("GOOGLE_APPLICATION_CREDENTIALS",), "~/.config/gcloud/application_default_credentials.json"),
}


def check_finished(run: RunDir, plan: Plan, allowed: int | None) -> None:
    """Judge a run that may be complete. One that is not is left to whoever finds it complete, and one that is an
    increment is judged with all increments of its dataset.

    allowed: how many rows of the run may be bad (`--max-bad`). Raises: NothingLabelledError if no row is ok.
    """
    if not plan.rows or (allowed is not None and allowed >= plan.rows):
        return
    shards = range(plan.shards)
    if len(run.done(plan)) < plan.shards:
        return
    counts = _sum(count_statuses(run, plan, shards))
    if counts["ok"] or others_have_ok(run):
        return
    text = f"none of the {plan.rows} images could be labelled: {counts_text(counts)}"
    raise explained(NothingLabelledError(text), run, plan)


def explained(error: NothingLabelledError, run: RunDir, plan: Plan) -> NothingLabelledError:
    """`error` with the likely cause, and with what to do."""
    cause = likely_cause(run, plan)
    because = f"Likely cause: {cause}. " if cause else ""
    again, retry = "give --overwrite", "give --retry-bad"
    if _is_increment(run):  # --incremental refuses these options
        again, retry = f"remove {run.path}", f"run: clipbatch run --out {run.path} --retry-bad"
    return NothingLabelledError(f"{error}. {because}{_REMEDY.format(again=again, retry=retry)}")


def likely_cause(run: RunDir, plan: Plan) -> str:
    """Why no row of a run is ok, in one line without a full stop; empty if there is no guess."""
    try:
        rows = _some_rows(run, plan)
    except (OSError, ClipbatchError, pa.ArrowException):
        return ""
    rows = rows.filter(pc.not_equal(rows["uri"], ""))
    if not rows.num_rows:
        return "the column of names is empty: name the right one with --uri-column"
    status, error = _first_error(run, plan)
    names, spans = rows["uri"].to_pylist(), rows["span"].null_count < rows.num_rows
    paths = [path_of(name, root) for name, root in zip(names, rows["root"].to_pylist(), strict=True)]
    if not spans and all(is_url(path) for path in paths):
        return _of_store(paths[0], status, error)
    local = not spans and not any(is_url(path) or is_data_uri(path) for path in paths)
    if local and not any(os.path.lexists(path) for path in paths):
        return _of_names(plan, rows, names, paths)
    return f"the first error is {status}: {error}" if error else ""


def others_have_ok(run: RunDir) -> bool:
    """Whether `run` is an increment, and another increment of its dataset has an ok row. If so, labels, model and paths
    are right, and all that is new may be bad. Ignores increments that are damaged: others judge them."""
    for other in _increments_beside(run):
        with contextlib.suppress(OSError, ClipbatchError):
            if other.exists() and _has_ok(other):
                return True
    return False


def _increments_beside(run: RunDir) -> Iterator[RunDir]:
    """The other increments of the dataset, if `run` is an increment."""
    if isinstance(run.path, Path) and _is_increment(run):
        for path in run.path.resolve().parent.glob("increment-*"):
            if INCREMENT.fullmatch(path.name) and path.name != run.path.name:
                yield RunDir(path)


def _is_increment(run: RunDir) -> bool:
    return INCREMENT.fullmatch(run.path.name) is not None


def _has_ok(run: RunDir) -> bool:
    plan = run.plan()
    return bool(_sum(count_statuses(run, plan, run.done(plan)))["ok"])


def _sum(counts: Mapping[int, Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts.values():
        total.update(each)
    return total


def _some_rows(run: RunDir, plan: Plan) -> pa.Table:
    """A few rows of the manifest, spread over its first shard."""
    rows = Manifest(run, plan).rows(0)
    return rows.take(pa.array(np.unique(np.linspace(0, rows.num_rows - 1, _ROWS).astype(int))))


def _first_error(run: RunDir, plan: Plan) -> tuple[str, str]:
    """Status and error of the first bad row of the first part; empty if there is none."""
    for shard in sorted(run.done(plan))[:1]:
        try:
            table = pq.read_table(parquet_source(run.part(shard, plan.shards)), columns=["status", "error"])
        except (OSError, ClipbatchError, pa.ArrowException):
            break
        bad = table.filter(pc.not_equal(table["status"].cast(pa.string()), "ok"))
        if bad.num_rows:
            return str(bad["status"][0]), bad["error"][0].as_py() or ""
    return "", ""


def _of_store(url: str, status: str, error: str) -> str:
    """The cause if all rows are urls."""
    scheme = url.partition("://")[0]
    variables, file = _CREDENTIALS.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme), ((), ""))
    is_refused = bool(error) and of_text(error).cause in ("credentials", "access")
    has_none = variables and not any(os.environ.get(name) for name in variables)
    if has_none and (is_refused or not error) and not os.path.exists(os.path.expanduser(file)):
        return f"no credentials for {scheme}:// are set here: neither {' nor '.join(variables)} nor {file}"
    said = f": {error}" if error else ""
    return f"the first url, {url}, is {status}{said}" if status else ""


def _of_names(plan: Plan, rows: pa.Table, names: Sequence[str], paths: Sequence[str]) -> str:
    """The cause if all rows name files, none of which exists."""
    settings = plan.run_settings().source
    absolute = [name for name in names if os.path.isabs(name)]
    if absolute:
        gone = _first_missing(absolute[0])
        return f"{gone} does not exist on this machine: is the disk mounted, and are the names right"
    folder = paths[0].removesuffix(names[0]).rstrip("/") or "/"
    root = f"--root {settings.root} does not lead to them" if settings.root else "without --root"
    looked = f"names are relative ({root}), and were looked for in {folder}, the first one as {paths[0]}"
    if remedy := _better_column(rows, folder):
        return f"{looked}; but {remedy}"
    if place := _where_they_are(settings.inputs, names):
        return f"{looked}; they are in {place}: --root {place}"
    if not any(os.path.splitext(name)[1] or "/" in name for name in names):
        return f"{looked}; {names[0]!r} does not look like a file: name the column of files with --uri-column"
    return f"{looked}: give the folder that they are relative to as --root"


def _first_missing(path: str) -> str:
    """The outermost folder of `path` that does not exist, or `path` itself."""
    parents = [str(parent) for parent in reversed(Path(path).parents)]
    return next((parent for parent in parents if not os.path.exists(parent)), path)


def _better_column(rows: pa.Table, folder: str) -> str:
    """What to do if the texts of a carried column name files in `folder`, or the folders of the images."""
    names = rows["uri"].to_pylist()
    for field in rows.schema:
        if field.name in ("uri", "root") or not is_text_type(field.type):
            continue
        texts = [text or "" for text in rows[field.name].to_pylist()]
        if _some_exist([text for text in texts if text], folder):
            return f"column {field.name!r} names files that exist there: --uri-column {field.name}"
        if _some_exist([os.path.join(*both) for both in zip(texts, names, strict=True) if both[0]], folder):
            return f"with column {field.name!r} before them they exist: write a column with both, and name that"
    return ""


def _where_they_are(inputs: Sequence[str], names: Sequence[str]) -> str | None:
    """The folder, near the manifest or the working folder, in which files of these names exist."""
    places = [os.getcwd()]
    for text in inputs:
        if not is_url(text):
            own = Path(folder_of(text) if not os.path.isdir(text) else os.path.abspath(text))
            places += [str(own), *map(str, own.parents), *_folders_in(own), *_folders_in(own.parent)]
    return next((place for place in dict.fromkeys(places) if _some_exist(names, place)), None)


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for _, entry in zip(range(_FOLDERS), entries, strict=False) if entry.is_dir())
    except OSError:
        return []


def _some_exist(names: Sequence[str], folder: str) -> bool:
    """Whether at least half of `names` are files in `folder`."""
    count = sum(os.path.isfile(os.path.join(folder, name)) for name in names)
    return bool(names) and 2 * count >= len(names)
