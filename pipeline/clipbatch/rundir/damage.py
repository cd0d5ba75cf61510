"""Find and repair damaged files of a run directory, other than parts and manifest.

A file is restored from its copy, and a copy from its file. `.counts.json` is a cache, so we just remove it. Nothing
here changes a part. Before `problems` is called, the caller has read the plan, the model's facts and the label
features, which raises an error if one of these files is damaged. So `problems` only looks at the copies and the cache.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path

from clipbatch.errors import InputError
from clipbatch.rundir import copies, features, head_weights
from clipbatch.rundir.counts import CACHE
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import unseal
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.storage.atomic import writing_failed
from clipbatch.storage.paths import AnyPath


def protect(run: RunDir, plan: Plan) -> None:
    """Write every copy that is missing or differs from its file.

    Commands that resume a run call this: the process that created the run may have been killed before it wrote a copy,
    and a copy may be damaged. Raises: InputError with the remedy if a file itself is damaged.
    """
    facts, text_features = run.model_facts(), features.load(run, plan)
    head_weights.load(run, plan)
    if plan.sha256 is None:
        return
    copies.make(run.path, run.plan_file.name)
    if plan.heads:
        copies.make(run.path, head_weights.NAME)
    if facts is not None:
        copies.make(run.path, run.model_file.name)
    if text_features is not None and (facts or {}).get("text_sha256"):
        copies.make(run.path, features.NAME)


def problems(run: RunDir, plan: Plan) -> list[str]:
    """What is wrong with the copies and the cached counts, one line per file. Writes nothing.

    Raises: InputError with the remedy if `text.npy` or `heads.safetensors` is damaged.
    """
    features.load(run, plan)
    head_weights.load(run, plan)
    if plan.sha256 is None:
        return []
    lines = []
    facts = run.model_facts()
    for name in copies.NAMES if facts else copies.NAMES[:2]:
        original, copy = run.frozen(name), copies.content(run.path, name)
        # If the label features and their copy are both missing, the next worker computes them again.
        if original is not None and copy != original:
            problem = "missing" if copy is None else f"damaged (it differs from {name})"
            lines.append(f"{run.path / copies.FOLDER / name}: {problem}")
    if _damaged_counts(run):
        lines.append(f"{run.path / CACHE}: damaged (its bytes are not those that were written)")
    return lines


def remedy(run: RunDir) -> str:
    """The command that repairs what `problems` lists."""
    return f"clipbatch verify {shlex.quote(str(run.path))} --restore"


def restore(run: RunDir) -> list[str]:
    """Restore each damaged file from its copy, or each damaged copy from its file. Returns what was done, line by line.

    Raises: InputError if both are damaged, or a file cannot be written.
    """
    actions = _restore_file(run, run.plan_file.name, _check_digest)
    plan = run.plan()
    if plan.sha256 is None:  # a run of an old version has no digests and no copies
        return actions
    if plan.heads:
        actions += _restore_file(run, head_weights.NAME, lambda content: head_weights.parse(content, plan.heads))
    actions += _restore_file(run, run.model_file.name, _check_digest)
    if digest := (run.model_facts() or {}).get("text_sha256"):
        labels = len(plan.labels.prompts)
        actions += _restore_file(run, features.NAME, lambda content: features.parse(content, labels, digest))
    if _damaged_counts(run):
        _remove(run.path / CACHE)
        actions.append(f"removed {run.path / CACHE}: the next run rebuilds it from the parts")
    return actions


def _check_digest(content: bytes) -> None:
    if unseal(content)[1] is None:
        raise DamagedRecordError("it has no digest")


def _restore_file(run: RunDir, name: str, check: Callable[[bytes], object]) -> list[str]:
    """check: raises DamagedRecordError if the bytes of the file are not those that were written."""
    original, copy = _content(run.path / name), copies.content(run.path, name)
    original_ok, copy_ok = _is_whole(original, check), _is_whole(copy, check)
    if original is not None and original_ok and copy != original:
        _remove(run.path / copies.FOLDER / name, folders_only=True)
        copies.put(run.path / copies.FOLDER, name, original)
        return [f"restored {run.path / copies.FOLDER / name} from {name}"]
    if copy is not None and copy_ok and not original_ok:
        _remove(run.path / name, folders_only=True)
        copies.put(run.path, name, copy)
        return [f"restored {run.path / name} from {copies.FOLDER}/{name}"]
    if not original_ok and copy is not None:
        raise InputError(
            f"{run.path / name} and its copy in {run.path / copies.FOLDER} are both damaged: restore one of them from "
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


def _remove(path: AnyPath, folders_only: bool = False) -> None:
    """Remove a file, or an empty folder that has its name. folders_only: leave a file alone."""
    try:
        if isinstance(path, Path) and path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif not folders_only:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise writing_failed(path, error) from error
