"""Begin a run in a folder where others may begin one at the same moment, on this host or another.

`run.json` is made in one step by whoever is first, and then stands; what it needs is there before it. The others drop
their own plan and go by that one. No lock is held, so nobody waits for one that died: what was left without a
`run.json` belongs to no run, and is cleared away by the next planner.

    replacing a run   run.json goes first, but for its copy: from then on its workers write no further part
                      (`RunDir.plan_of`)
    clearing          parts and what its workers froze; the folder of parts is renamed away, so that a worker which had
                      begun to write one cannot finish it
    the manifest      renamed in, or found there with the same bytes
    run.json          last, but for its copy; so a copy without run.json is damage, and no planner clears that away

Knows no listing and no settings.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clipbatch.errors import InputError, OtherRunError
from clipbatch.rundir import copies
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.storage.atomic import file_sha256, publish, sync_folder, temp_name, writing_failed
from clipbatch.storage.paths import AnyPath, StorePath, list_names

_FILES = (
    *(".counts.json", "report.json", "report.html", "text.npy", "model.json"),
    *("evaluation.json", "confusion.parquet"),
)
_OURS = re.compile(r"part-\d+\.parquet|\..+\.tmp")
_PATIENCE_S = 3.0
"""A planner that has renamed its manifest in makes `run.json` within milliseconds; after this long it has died."""


@contextlib.contextmanager
def staged(run: RunDir) -> Iterator[Path]:
    """A folder to write the manifest of a new run into, for `begin`.

    It is gone at the end, and so is a run directory that was made for it and stayed empty.

    Raises: InputError if the directory cannot be written, or holds what no run wrote.
    """
    made = ensure_usable(run)
    folder = Path(tempfile.mkdtemp()) if isinstance(run.manifest, StorePath) else temp_name(run.manifest)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a killed planner that had the same pid
        folder.mkdir()
        yield folder
    except OSError as error:
        raise writing_failed(run.path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made and isinstance(run.path, Path):
            with contextlib.suppress(OSError):  # nothing was written, as the listing was refused
                run.path.rmdir()


def ensure_usable(run: RunDir) -> bool:
    """Make the directory; whether it was not there. Raises: InputError where it cannot be made, or holds what no run
    wrote."""
    made = False
    try:
        if isinstance(run.path, Path):
            made = not run.path.exists()
            run.path.mkdir(parents=True, exist_ok=True)
        strange = None if run.exists() else foreign_entry(run)
    except OSError as error:
        raise writing_failed(run.path, error) from error
    if strange:
        raise InputError(
            f"the output folder {run.path} holds other files ({strange!r} ...): choose a new or empty folder"
        )
    probe = run.path / temp_name(Path(".writable")).name
    try:
        with publish(probe):
            pass
        probe.unlink()
    except OSError as error:
        raise writing_failed(run.path, error) from error
    return made


def create(run: RunDir, plan: Plan, staged: Path, *, replace: bool) -> Plan:
    """Make `plan`, whose manifest is the folder `staged`, the plan of `run`, unless another stands or comes first.

    replace: throw away the run that is there. Returns the plan that stands; `staged` may be left over.
    Raises: OSError where the folder cannot be written; OtherRunError where somebody else is replacing it too.
    """
    if replace:
        clear(run)
    else:
        _check_lost(run)
        with contextlib.suppress(OtherRunError):  # one that stands, or just came: it is gone by then
            _clear_results(run)
    if not run.exists():
        _place_manifest(run, plan, staged)
        run.make_parts()
        if isinstance(run.path, Path):
            sync_folder(run.path)
    return run.freeze_plan(plan)


def clear(run: RunDir) -> None:
    """Remove what a run wrote here, and nothing else."""
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
    """Remove our files in `folder`, and the folder itself where nothing else is in it. An empty one stays, since
    another planner may have just made it."""
    with contextlib.suppress(FileNotFoundError):
        found = list_names(folder)
        ours = [name for name in found if _OURS.fullmatch(name)]
        _check_nobody_began(run)
        if isinstance(folder, Path) and ours and len(ours) == len(found):
            aside = temp_name(folder.with_name(f"{folder.name}.old"))
            os.rename(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            for name in ours:
                (folder / name).unlink(missing_ok=True)


def _check_lost(run: RunDir) -> None:
    """Raises: InputError where `run.json` is gone, and its copy shows that nobody has thrown the run away."""
    name = run.plan_file.name
    copied, there = copies.content(run.path, name), run.exists()  # in this order: run.json comes first, and goes last
    if copied is not None and not there and copies.content(run.path, name) is not None:
        raise InputError(f"{copies.damaged(run.path, name, 'it is gone')}, and --overwrite throws the run away")


def _check_nobody_began(run: RunDir) -> None:
    if run.exists():
        raise OtherRunError(
            f"somebody else has just begun a run in {run.path}: the same command goes on with it if it is the same "
            "run; else choose another --out"
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
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # a folder that is there and not empty
                raise
        if _digests(run.manifest) == plan.manifest_sha256:
            return
        if time.monotonic() - begun > _PATIENCE_S:
            with contextlib.suppress(OtherRunError):
                _remove_folder(run, run.manifest)
        time.sleep(0.05)


def _digests(folder: Path) -> dict[str, str]:
    """Digest of each file of a manifest; nothing where another planner is just taking it away."""
    try:
        return {name: file_sha256(folder / name) for name in os.listdir(folder)}
    except OSError:
        return {}


def foreign_entry(run: RunDir) -> str | None:
    """The name of something in the directory that no run wrote."""
    for name in sorted(list_names(run.path)):
        if name in (run.manifest.name, run.parts.name, copies.FOLDER):
            ours = copies.NAMES if name == copies.FOLDER else ()
            entries = list_names(run.path / name)
            inside = [entry for entry in entries if not _OURS.fullmatch(entry) and entry not in ours]
            if inside:
                return f"{name}/{min(inside)}"
        elif name not in (*_FILES, "slurm") and not name.startswith("."):
            return name
    return None
