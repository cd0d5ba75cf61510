"""The label features of a run, in `text.npy`. The first worker writes them. They are checked whenever they are read.

Their digest is in `model.json`, and so it is part of the fingerprint of every part. All shards of a run have scores by
the same features. Runs of old versions have no digest. There, we only check that the file holds unit vectors in
float32.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clipbatch.errors import InputError
from clipbatch.rundir import copies
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.records import ModelFacts
from clipbatch.rundir.shapes import DamagedRecordError

NAME = "text.npy"
# By how much the length of a label's vector may differ from 1.
_MAX_LENGTH_ERROR = 1e-3


def npy_bytes(array: NDArray[np.float32]) -> bytes:
    """`array` in the format of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def parse(content: bytes, labels: int, sha256: str | None) -> NDArray[np.float32]:
    """`text_LD`, float32, from the bytes of an .npy file. labels: the number of labels. sha256: the digest, if known.

    Raises: DamagedRecordError if these are not the features of the run.
    """
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedRecordError("its bytes are not those that were written")
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy raises all kinds of exceptions for a damaged header
        raise DamagedRecordError("it is not an .npy file with an array of numbers") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2 or len(array) != labels:
        raise DamagedRecordError(f"it does not hold a vector in float32 for each of {labels} labels")
    if not np.all(np.abs(np.linalg.norm(array.astype(np.float64), axis=1) - 1) < _MAX_LENGTH_ERROR):
        raise DamagedRecordError("it holds vectors that are not of unit length")
    return array


def load(run: RunDir, plan: Plan) -> tuple[NDArray[np.float32], bytes] | None:
    """The features `text_LD` of the run, and the bytes of the file; None if neither the file nor its copy exists.

    Raises: InputError with the remedy if the file is damaged, or missing while its copy exists.
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
    """The features of the run, and their digest for `model.json`, which is None for a run of an old version.

    compute: computes them if the run has none yet. Raises: InputError as `load`; also if the file is missing and this
    machine computes features that are not equal to the last bit.
    """
    facts = run.model_facts()
    if (stored := load(run, plan)) is None:
        content = npy_bytes(compute())
        if _recorded(facts) not in (None, hashlib.sha256(content).hexdigest()):
            raise InputError(
                f"{run.path / NAME} is missing, and the features that this machine computes differ in the last bits: "
                "restore the file from a backup, or resume the run on a machine of the kind that began it"
            )
        run.freeze(NAME, content)
        if (stored := load(run, plan)) is None:
            raise InputError(f"{run.path / NAME} was removed as soon as it was written: run the same command again")
    array, content = stored
    is_old = plan.sha256 is None or (facts is not None and _recorded(facts) is None)
    return array, None if is_old else hashlib.sha256(content).hexdigest()


def _recorded(facts: ModelFacts | None) -> str | None:
    return (facts or {}).get("text_sha256")
