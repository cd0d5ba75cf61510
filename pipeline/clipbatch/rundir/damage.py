"""Which files of a run directory, other than parts and manifest, are not what was written, and how each is put back.

A file and its copy restore one another; `.counts.json` is a cache, and goes. Nothing here touches a part. Who asks for
`problems` has read the plan, the facts and the label features before, and was refused where one of these is damaged.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path

from clipbatch.errors import InputError
from clipbatch.rundir import copies, features
from clipbatch.rundir.counts import CACHE
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.records import unseal
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.storage.atomic import writing_failed
from clipbatch.storage.paths import AnyPath


def protect(run: RunDir, plan: Plan) -> None:
    """Make the second copies anew that are missing, or not the same any more, from their files.

    For each command that goes on with a run: whoever began it may have been killed before, and a copy may be damaged.
    Raises: InputError where a file itself is damaged, with the remedy.
    """
    facts, found = run.model_facts(), features.standing(run, plan)
    if plan.sha256 is None:
        return
    copies.make(run.path, run.plan_file.name)
    if facts is not None:
        copies.make(run.path, run.model_file.name)
    if found is not None and (facts or {}).get("text_sha256"):
        copies.make(run.path, features.NAME)


def problems(run: RunDir, plan: Plan) -> list[str]:
    """What is wrong with the copies and the cached counts: a line for each file. Writes nothing.

    Raises: InputError where `text.npy` is damaged, with the remedy.
    """
    features.standing(run, plan)
    if plan.sha256 is None:
        return []
    lines = []
    facts = run.model_facts()
    for name in copies.NAMES if facts else copies.NAMES[:1]:
        original, copy = run.frozen(name), copies.content(run.path, name)
        if original is not None and copy != original:  # label features that are gone with their copy are computed anew
            wrong = "not there" if copy is None else f"damaged (it does not hold what {name} does)"
            lines.append(f"{run.path / copies.FOLDER / name}: {wrong}")
    if _damaged_counts(run):
        lines.append(f"{run.path / CACHE}: damaged (its bytes are not those that were written)")
    return lines


def remedy(run: RunDir) -> str:
    """The command that mends what `problems` names."""
    return f"clipbatch verify {shlex.quote(str(run.path))} --restore"


def restore(run: RunDir) -> list[str]:
    """Put back each file from its copy, or the copy from its file; what was done, a line for each.

    Raises: InputError where both are damaged, or it cannot be written.
    """
    said = _mend(run, run.plan_file.name, _carries_digest)
    plan = run.plan()
    if plan.sha256 is None:  # nothing is known to be damaged, and there are no copies
        return said
    said += _mend(run, run.model_file.name, _carries_digest)
    if digest := (run.model_facts() or {}).get("text_sha256"):
        said += _mend(run, features.NAME, lambda content: features.parse(content, len(plan.labels.prompts), digest))
    if _damaged_counts(run):
        _clear(run.path / CACHE)
        said.append(f"removed {run.path / CACHE}, which the next run makes anew from the parts")
    return said


def _carries_digest(content: bytes) -> None:
    if unseal(content)[1] is None:
        raise DamagedRecordError("it carries no digest")


def _mend(run: RunDir, name: str, check: Callable[[bytes], object]) -> list[str]:
    """check: raises where a content is not what was written."""
    original, copy = _content(run.path / name), copies.content(run.path, name)
    whole, kept = _is_whole(original, check), _is_whole(copy, check)
    if original is not None and whole and copy != original:
        _clear(run.path / copies.FOLDER / name, folders_only=True)
        copies.put(run.path / copies.FOLDER, name, original)
        return [f"made {run.path / copies.FOLDER / name} anew from {name}"]
    if copy is not None and kept and not whole:
        _clear(run.path / name, folders_only=True)
        copies.put(run.path, name, copy)
        return [f"put back {run.path / name} from {copies.FOLDER}/{name}"]
    if not whole and copy is not None:
        raise InputError(
            f"{run.path / name} and its copy in {run.path / copies.FOLDER} are both damaged: put one of them back from "
            f"a backup, or label the images into a folder other than {run.path}"
        )
    return []


def _is_whole(content: bytes | None, check: Callable[[bytes], object]) -> bool:
    with contextlib.suppress(DamagedRecordError):
        if content is not None:
            check(content)
            return True
    return False


def _content(path: AnyPath) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _damaged_counts(run: RunDir) -> bool:
    path = run.path / CACHE
    try:
        return unseal(path.read_bytes())[1] is None
    except FileNotFoundError:
        return False
    except (OSError, DamagedRecordError):
        return True


def _clear(path: AnyPath, folders_only: bool = False) -> None:
    """Remove a file, or an empty folder in the place of one."""
    try:
        if isinstance(path, Path) and path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif not folders_only:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise writing_failed(path, error) from error
