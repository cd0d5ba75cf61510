"""The numbers of a run's heads, in `heads.safetensors`. The planner writes them, before `run.json`.

So a run needs the files that `--head` named only when it is planned. Their digests are in the identity of the run, and
the numbers are compared with them whenever they are read.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

from clipbatch.config import head_files
from clipbatch.config.heads import Head, HeadFile, digest
from clipbatch.rundir import copies
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.shapes import DamagedRecordError

NAME = "heads.safetensors"


def content(files: Sequence[HeadFile]) -> bytes | None:
    """The bytes of `heads.safetensors` for these heads; None if there are none."""
    import safetensors.numpy

    if not files:
        return None
    tensors = [head_files.tensors_of(file, f"{file.head.name}.") for file in files]
    return bytes(safetensors.numpy.save(dict(ChainMap(*tensors))))


def parse(data: bytes, of: Sequence[Head]) -> tuple[HeadFile, ...]:
    """The heads `of` with their numbers. Raises: DamagedRecordError if `data` does not hold their numbers."""
    try:
        tensors, files = head_files.parse(data), []
        for head in of:
            prefix = f"{head.name}."
            own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            files.append(HeadFile(head=head, numbers=head_files.layers_of(head.layers, own)))
    except ValueError as error:
        raise DamagedRecordError(str(error)) from error
    if tensors or any(digest(file.numbers) != file.head.sha256 for file in files):
        raise DamagedRecordError("its bytes are not those that were written")
    return tuple(files)


def load(run: RunDir, plan: Plan) -> tuple[HeadFile, ...]:
    """The run's heads; () if it has none. Raises: InputError with the remedy if the file is damaged or missing."""
    if not plan.heads:
        return ()
    data = copies.read(run.path, NAME)
    if data is None:
        raise copies.damaged(run.path, NAME, "it is missing")
    try:
        return parse(data, plan.heads)
    except DamagedRecordError as error:
        raise copies.damaged(run.path, NAME, str(error)) from error


def standing(run: RunDir, *, overwrite: bool) -> dict[str, HeadFile]:
    """The heads of the run that goes on, by the NAME=FILE with which it was planned.

    Empty if there is no such run, or it is to be replaced. Raises: as `load`.
    """
    if overwrite or not run.exists():
        return {}
    plan = run.plan()
    return dict(zip(plan.run_settings().labels.head or (), load(run, plan), strict=False))
