"""Every failure that stops a run, and the exit code it ends the process with.

    ClipbatchError                 1  a bug of ours, or a worker that cannot be kept alive
    ├── InputError                 3  refused: an input, a label file, a setting, a model, an output folder
    │   └── OtherRunError          3  the output folder belongs to a run with other settings
    ├── TooManyBadError            4  more bad images than --max-bad allows
    ├── DamagedError               5  files of a run are missing or damaged, and stay so
    ├── UnfitError                 5  doctor found something that keeps runs from working here
    ├── BusyError                  6  another process is at the same dataset, or serves the same spool
    ├── InterruptedRunError       75  stopped by a signal; the same command goes on where it stopped
    └── UnreachableError          75  a store or web server refuses every read; repaired, the same command goes on

An image that cannot be read or decoded is none of these: it is data, a `types.Reject`.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "ClipbatchError",
    "DamagedError",
    "InputError",
    "InterruptedRunError",
    "OtherRunError",
    "TooManyBadError",
    "UnfitError",
    "UnreachableError",
    "from_message",
    "nearest",
]


class ClipbatchError(Exception):
    """Base of all failures that end a run; `exit_code` is the process's."""

    exit_code = 1


class InputError(ClipbatchError):
    """Something that was given is refused. The message names the value, the place and the remedy."""

    exit_code = 3


class OtherRunError(InputError):
    """The run directory was made with other settings; the message names the field that differs."""


class TooManyBadError(ClipbatchError):
    """More bad images than `--max-bad` allows."""

    exit_code = 4


class DamagedError(ClipbatchError):
    """Files of a run are missing, damaged or of another run: `verify` found them, or what a run has written is gone."""

    exit_code = 5


class UnfitError(ClipbatchError):
    """`doctor` found something that keeps runs from working on this machine."""

    exit_code = 5


class BusyError(ClipbatchError):
    """Another process is making an increment of the same dataset, or serves the same spool."""

    exit_code = 6


class InterruptedRunError(ClipbatchError):
    """A signal ended the run; every published part stays, and the same command resumes."""

    exit_code = 75


class UnreachableError(ClipbatchError):
    """A store or web server refuses every read, or answers none. Parts without such rows stay, and once the cause is
    repaired, the same command resumes."""

    exit_code = 75


def from_message(exit_code: int, message: str) -> ClipbatchError:
    """The error of this module with `exit_code`, rebuilt from what a worker process reported."""
    for kind in (InputError, TooManyBadError, DamagedError, UnreachableError):
        if kind.exit_code == exit_code:
            return kind(message)
    return ClipbatchError(message)


def brief(error: BaseException) -> str:
    """Type and first line of an exception that is not ours; some libraries write whole pages."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def reading_failed(what: str, error: OSError) -> InputError:
    """The refusal for a file of the user's that cannot be read."""
    return InputError(f"cannot read {what}: {error.strerror or error}; check its name and who may read it")


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """' Did you mean X?' for the entries of `known` nearest to `word`, or '' where none is near."""
    import difflib

    lower = {name.lower(): name for name in known}
    found = [lower[name] for name in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.6)]
    return f" Did you mean {' or '.join(found)}?" if found else ""
