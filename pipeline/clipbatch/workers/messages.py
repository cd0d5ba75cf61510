"""The messages between a worker and its supervisor. Each is a frozen type, sent as one line of JSON.

A worker sends `Loaded`, `Ready`, `Alive`, `Remark`, `BatchDone`, `PartDone`, `WorkerReport` and `Failed`. The parent
that started the process adds `Ended`. The supervisor answers `Ready` with `Assign` or `Finish`; it may send `Stop` at
any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from clipbatch.config.nesting import JsonObject
from clipbatch.types import Level, PartDone, Reject, WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The worker has loaded its model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The worker waits for its next order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """The worker has read more files since its last message, but has not finished a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A remark for the user."""

    text: str
    level: Level = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDone:
    """How many rows the worker has finished since its last `BatchDone`."""

    rows: int
    # Those without scores, by status.
    bad: Mapping[str, int]
    # The name of the slowest stage.
    bottleneck: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An exception is ending the worker."""

    exit_code: int
    # The text of an error of clipbatch; a traceback for any other error.
    message: str
    # The type and first line of the error.
    what: str = ""
    # device: the GPU failed, as an image can make it fail; such an end counts like a death by a signal.
    # unfit: what the run asks cannot be done on this seat; other seats may go on without it.
    fault: Literal["error", "device", "unfit"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The worker process has ended."""

    # The exit code; if negative, the number of the signal that killed the process.
    code: int
    # The row_ids of rows that the worker had started to decode and had not finished.
    in_flight: tuple[int, ...] = ()
    # The last lines that the process printed.
    log: tuple[str, ...] = ()
    # How the worker ended, in words, where the exit code does not tell.
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Process a shard."""

    shard: int
    # Process only the rows with these row_ids. None: all rows of the shard.
    rows: tuple[int, ...] | None = None
    # Rows, by row_id, that the worker must not process, and what to write for them.
    rejects: Mapping[int, Reject] = field(default_factory=dict)
    # The new part replaces an existing one in any case.
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """No work is left: report and exit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The work at hand is no longer needed: report and exit at once."""


Report = Union[Loaded, Ready, Alive, Remark, BatchDone, PartDone, WorkerReport, Failed, Ended]
Order = Union[Assign, Finish, Stop]
Message = Union[Report, Order]
_KINDS = {kind.__name__: kind for kind in (*Report.__args__, *Order.__args__)}  # type: ignore[attr-defined]


def to_json(message: Message) -> JsonObject:
    """`message` as a JSON object; `kind` is the name of its type."""
    return {"kind": type(message).__name__, **dataclasses.asdict(message)}


def from_json(value: Any) -> Any:
    """The message from which `to_json` made `value`. Raises: ValueError if `value` is not such an object."""
    try:
        fields = dict(value)
        kind = _KINDS[fields.pop("kind")]
        if kind is Assign:
            rejects = {int(row): Reject(**reject) for row, reject in fields["rejects"].items()}
            fields |= {"rejects": rejects, "rows": None if fields["rows"] is None else tuple(fields["rows"])}
        return kind(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a message between a worker and its supervisor: {value!r}") from error
