"""What a worker and its supervisor say to each other: frozen types, each of which is one line of JSON on its way.

A worker reports `Loaded`, `Ready`, `Alive`, `Remark`, `BatchDone`, `PartDone`, `WorkerReport` and `Failed`. Whoever
started it adds `Ended`. The supervisor answers `Ready` with `Assign` or `Finish`, and may send `Stop` at any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from clipbatch.types import PartDone, Reject, WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The model is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The worker waits to be told what is next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """The worker still reads files, although no batch has been finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDone:
    """Rows that are done since the last of these messages."""

    rows: int
    bad: int
    # The slowest stage.
    bottleneck: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An exception that ends the worker."""

    exit_code: int
    # Its text, or a traceback unless it is one of ours.
    message: str
    # Its type and first line.
    what: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The worker has ended."""

    # Exit code; negative: the signal that killed it.
    code: int
    # Rows (row_ids) that were between decode and done.
    in_flight: tuple[int, ...] = ()
    # The last lines that it printed.
    log: tuple[str, ...] = ()
    # How it ended, in words, if the exit code does not tell.
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Do a shard."""

    shard: int
    # Only these row_ids of it; None: all.
    rows: tuple[int, ...] | None = None
    # Rows (row_ids) that it must not touch.
    rejects: Mapping[int, Reject] = field(default_factory=dict)
    # The new part replaces any other.
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Nothing is left: report, and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Somebody else has done what you are doing: report, and end at once."""


Report = Union[Loaded, Ready, Alive, Remark, BatchDone, PartDone, WorkerReport, Failed, Ended]
Order = Union[Assign, Finish, Stop]
Message = Union[Report, Order]
_KINDS = {kind.__name__: kind for kind in (*Report.__args__, *Order.__args__)}  # type: ignore[attr-defined]


def to_json(message: Message) -> dict[str, Any]:
    """`message` as a JSON object, with its type's name as `kind`."""
    return {"kind": type(message).__name__, **dataclasses.asdict(message)}


def from_json(value: Any) -> Any:
    """The message that `to_json` made `value` of. Raises: ValueError if it made no such thing."""
    try:
        fields = dict(value)
        kind = _KINDS[fields.pop("kind")]
        if kind is Assign:
            rejects = {int(row): Reject(**reject) for row, reject in fields["rejects"].items()}
            fields |= {"rejects": rejects, "rows": None if fields["rows"] is None else tuple(fields["rows"])}
        return kind(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a message between a worker and its supervisor: {value!r}") from error
