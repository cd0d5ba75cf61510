"""`text.npy`, the label features that a run goes by: frozen by its first worker, checked whenever they are read.

Their digest stands in `model.json`, so it is part of what every part's fingerprint says: two shards of a run never have
scores by different features. A run of an old version has no digest of them; there, what is no set of unit vectors in
float32 is refused.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.rundir import copies
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.shapes import DamagedRecordError

NAME = "text.npy"
_UNIT = 1e-3
"""By how much the length of a label's vector may differ from 1."""


def npy_bytes(array: NDArray[np.float32]) -> bytes:
    """`array` as the content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def parse(content: bytes, labels: int, sha256: str | None) -> NDArray[np.float32]:
    """`text_LD` in the .npy file `content`. labels: how many there are. sha256: of the content, where it is known.

    Raises: DamagedRecordError where it is not what was frozen.
    """
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedRecordError("its bytes are not those that were written")
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # whatever numpy makes of a header that is none
        raise DamagedRecordError("it is no .npy file with an array of numbers") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2 or len(array) != labels:
        raise DamagedRecordError(f"it does not hold a vector in float32 for each of {labels} labels")
    if not np.all(np.abs(np.linalg.norm(array.astype(np.float64), axis=1) - 1) < _UNIT):
        raise DamagedRecordError("it holds vectors that are not of unit length")
    return array


def standing(run: RunDir, plan: Plan) -> tuple[NDArray[np.float32], bytes] | None:
    """The features that were frozen, with the file's content; None where they were not yet, or are gone with the copy.

    Raises: InputError with the remedy where they are damaged, or gone without their copy.
    """
    content = copies.read(run.path, NAME)
    if content is None:
        return None
    try:
        return parse(content, len(plan.labels.prompts), _recorded(run.model_facts())), content
    except DamagedRecordError as error:
        raise copies.damaged(run.path, NAME, str(error)) from error


def freeze(
    run: RunDir, plan: Plan, compute: Callable[[], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], str | None]:
    """The features that the run goes by, and their digest for `model.json`, None for a run of an old version.

    compute: called where nobody has frozen them yet. Raises: InputError as `standing` does; where they are gone, and
    this machine does not compute them to the same bit.
    """
    facts = run.model_facts()
    if (found := standing(run, plan)) is None:
        content = npy_bytes(compute())
        if _recorded(facts) not in (None, hashlib.sha256(content).hexdigest()):
            raise InputError(
                f"{run.path / NAME} is gone, and this machine computes other features to the last bit: put it back "
                "from a backup, or go on with the run on a machine of the kind that began it"
            )
        run.freeze(NAME, content)
        if (found := standing(run, plan)) is None:
            raise InputError(f"{run.path / NAME} was taken away as soon as it was written: run the same command again")
    array, content = found
    is_old = plan.sha256 is None or (facts is not None and _recorded(facts) is None)
    return array, None if is_old else hashlib.sha256(content).hexdigest()


def _recorded(facts: dict[str, Any] | None) -> str | None:
    return (facts or {}).get("text_sha256")
