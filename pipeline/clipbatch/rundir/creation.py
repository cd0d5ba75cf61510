"""Create a run in a folder, even if other processes do the same at the same time, on this host or another.

The problem: several planners may start together, and any of them may be killed at any moment.

The mechanism: the first planner creates `run.json` in one atomic step, after everything that it refers to. The others
then discard their own plans and use that one. There are no locks, so nobody waits for a dead process. Files without a
`run.json` belong to no run, and the next planner removes them.

The order of the steps:
    replace   To replace a run, remove copies/run.json and then run.json. From then on, its workers write no more parts
              (`RunDir.plan_of`).
    clear     Remove the parts and the files of the workers. The folder of parts is renamed first, so that a worker that
              is writing a part cannot finish it.
    manifest  Rename the new manifest into place, unless there is one with the same bytes.
    heads     Write the numbers of the heads, if the plan has any.
    run.json  Create it, then its copy. So a copy without run.json means damage, which no planner removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from clipbatch.errors import ClipbatchError, InputError, OtherRunError
from clipbatch.rundir import copies, head_weights
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import file_sha256, publish, sync_folder, temp_name, writing_failed
from clipbatch.storage.paths import AnyPath, StorePath, list_names

_FILES = (
    *(".counts.json", "report.json", "report.html", "text.npy", "model.json", head_weights.NAME),
    *("evaluation.json", "confusion.parquet"),
)
_OURS = re.compile(r"part-\d+\.parquet|\..+\.tmp")
# A planner creates `run.json` milliseconds after its manifest. If that takes longer than this, the planner has died.
_MAX_WAIT_S = 3.0


@contextlib.contextmanager
def staged(run: RunDir) -> Iterator[Path]:
    """A temporary folder for the manifest of a new run, to pass to `create`.

    It is removed at the end. So is the run directory, if it did not exist before and is still empty.
    Raises: InputError if the run directory cannot be written, or holds files that do not belong to a run.
    """
    is_new = ensure_usable(run)
    folder = Path(tempfile.mkdtemp()) if isinstance(run.manifest, StorePath) else temp_name(run.manifest)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed planner with the same pid
        folder.mkdir()
        yield folder
    except OSError as error:
        raise writing_failed(run.path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new and isinstance(run.path, Path):
            with contextlib.suppress(OSError):  # fails unless the folder is empty
                run.path.rmdir()


def ensure_usable(run: RunDir) -> bool:
    """Create the run directory. Returns whether it is new.

    Raises: InputError if it cannot be created or written, or holds files that do not belong to a run.
    """
    is_new = False
    try:
        if isinstance(run.path, Path):
            is_new = not run.path.exists()
            run.path.mkdir(parents=True, exist_ok=True)
        foreign = None if run.exists() else foreign_entry(run)
    except OSError as error:
        raise writing_failed(run.path, error) from error
    if foreign:
        raise InputError(
            f"the output folder {run.path} holds other files ({foreign!r} ...): choose a new or empty folder"
        )
    probe = run.path / temp_name(Path(".writable")).name
    try:
        with publish(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise writing_failed(run.path, error) from error
    return is_new


def create(run: RunDir, plan: Plan, staged: Path, *, replace: bool, heads: bytes | None = None) -> Plan:
    """Create a run with `plan` and the manifest in the folder `staged`, unless there is a run already.

    replace: remove the run that is there. heads: the content of the file with the numbers of the plan's heads. Returns
    the plan of the run, which may be another planner's.
    Raises: OSError if the folder cannot be written; OtherRunError if another process creates a run at the same time.
    """
    if replace:
        if _is_unbegun(run, plan):  # by a process that got the same command at the same time
            return run.freeze_plan(plan)
        if run.exists():
            plan = dataclasses.replace(plan, replacement=uuid.uuid4().hex)
        clear(run)
    else:
        _check_lost(run)
        with contextlib.suppress(OtherRunError):  # there is a run, which we then use
            _clear_results(run)
    if not run.exists():
        _place_manifest(run, plan, staged)
        if heads:
            _place_heads(run, heads)
        run.make_parts()
        if isinstance(run.path, Path):
            sync_folder(run.path)
    frozen = run.freeze_plan(plan)
    if heads:
        copies.make(run.path, head_weights.NAME)
    return frozen


def _is_unbegun(run: RunDir, plan: Plan) -> bool:
    """Whether the run directory holds `plan`, whole, and no worker has begun."""
    if isinstance(run.manifest, StorePath) or not run.exists() or run.model_file.exists() or list_names(run.parts):
        return False
    with contextlib.suppress(ClipbatchError):  # what is damaged is replaced
        same = dataclasses.replace(run.plan(), replacement=None).content() == plan.content()
        return same and _digests(run.manifest) == plan.manifest_sha256
    return False


def clear(run: RunDir) -> None:
    """Remove the files of a run, and nothing else."""
    copies.remove(run.path)
    with contextlib.suppress(FileNotFoundError):
        if isinstance(run.plan_file, StorePath):
            run.plan_file.unlink()
        else:
            aside = temp_name(run.plan_file)
            os.rename(run.plan_file, aside)
            aside.unlink()
    _clear_results(run)
    _remove_folder(run, run.manifest)


def _clear_results(run: RunDir) -> None:
    _check_nobody_began(run)
    _remove_folder(run, run.parts)
    for name in _FILES:
        _check_nobody_began(run)
        (run.path / name).unlink(missing_ok=True)
    copies.remove(run.path)


def _remove_folder(run: RunDir, folder: AnyPath) -> None:
    """Remove our files in `folder`, and then `folder` if it holds nothing else.

    Leaves an empty folder alone, since another planner may have just created it.
    """
    with contextlib.suppress(FileNotFoundError):
        names = list_names(folder)
        ours = [name for name in names if _OURS.fullmatch(name)]
        _check_nobody_began(run)
        if isinstance(folder, Path) and ours and len(ours) == len(names):
            aside = temp_name(folder.with_name(f"{folder.name}.old"))
            os.rename(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            for name in ours:
                (folder / name).unlink(missing_ok=True)


def _check_lost(run: RunDir) -> None:
    """Raises: InputError if `run.json` is missing and its copy shows that nobody removed the run on purpose."""
    name = run.plan_file.name
    # Look at the copy first: run.json is created before its copy, and removed after it.
    copy, exists = copies.content(run.path, name), run.exists()
    if copy is not None and not exists and copies.content(run.path, name) is not None:
        raise InputError(f"{copies.damaged(run.path, name, 'it is missing')}, and --overwrite discards the run")


def _check_nobody_began(run: RunDir) -> None:
    if run.exists():
        raise OtherRunError(
            f"another process has just begun a run in {run.path}: if it is the same run, the same command resumes it; "
            "else choose another --out"
        )


def _place_manifest(run: RunDir, plan: Plan, staged: Path) -> None:
    if isinstance(run.manifest, StorePath):
        for file in sorted(staged.iterdir()):
            (run.manifest / file.name).write_bytes(file.read_bytes())
        return
    begun = time.monotonic()
    while not run.exists():
        try:
            os.rename(staged, run.manifest)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # the folder exists and is not empty
                raise
        if _digests(run.manifest) == plan.manifest_sha256:
            return
        if time.monotonic() - begun > _MAX_WAIT_S:
            with contextlib.suppress(OtherRunError):
                _remove_folder(run, run.manifest)
        time.sleep(0.05)


def _place_heads(run: RunDir, content: bytes) -> None:
    begun = time.monotonic()
    while not run.exists() and run.freeze(head_weights.NAME, content) != content:
        if time.monotonic() - begun > _MAX_WAIT_S:  # as above
            with contextlib.suppress(OtherRunError):
                _check_nobody_began(run)
                (run.path / head_weights.NAME).unlink(missing_ok=True)
        time.sleep(0.05)


def _digests(folder: Path) -> dict[str, str]:
    """Digest of each file of a manifest; {} if another planner is removing it."""
    try:
        return {name: file_sha256(folder / name) for name in os.listdir(folder)}
    except OSError:
        return {}


def foreign_entry(run: RunDir) -> str | None:
    """The name of a file or folder in the run directory that does not belong to a run; None if there is none."""
    for name in sorted(list_names(run.path)):
        if name in (run.manifest.name, run.parts.name, copies.FOLDER):
            ours = copies.NAMES if name == copies.FOLDER else ()
            entries = list_names(run.path / name)
            foreign = [entry for entry in entries if not _OURS.fullmatch(entry) and entry not in ours]
            if foreign:
                return f"{name}/{min(foreign)}"
        elif name not in (*_FILES, "slurm") and not name.startswith("."):
            return name
    return None
