"""The errors that stop a run, and the exit code of each.

    ClipbatchError                 1  a bug in clipbatch, or a worker that keeps dying
    ├── InputError                 3  an input, label file, setting, model or output folder cannot be used
    │   ├── OtherRunError          3  the output folder belongs to a run with other settings
    │   └── UnfitSeatError         3  no device can do what the run asks
    ├── TooManyBadError            4  more bad images than --max-bad allows
    │   └── NothingLabelledError   4  none of the images could be labelled
    ├── DamagedError               5  files of a run are missing or damaged and could not be repaired
    ├── UnfitError                 5  doctor found a problem that prevents runs on this machine
    ├── BusyError                  6  another process works on the same dataset, or serves the same spool
    ├── InterruptedRunError       75  stopped by a signal; the same command resumes the run
    └── UnreachableError          75  a store or web server refuses every read; the same command resumes the run

An image that cannot be read or decoded raises none of these. It becomes an output row with a status, inside the package
a `types.Reject`.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "ClipbatchError",
    "DamagedError",
    "InputError",
    "InterruptedRunError",
    "NothingLabelledError",
    "OtherRunError",
    "TooManyBadError",
    "UnfitError",
    "UnfitSeatError",
    "UnreachableError",
    "from_message",
    "nearest",
]


class ClipbatchError(Exception):
    """Base class of all errors that end a run. `exit_code` is the exit code of the command line."""

    exit_code = 1


class InputError(ClipbatchError):
    """An input or a setting cannot be used. The message names the value, where it was found, and what to do."""

    exit_code = 3


class OtherRunError(InputError):
    """The run directory belongs to a run with other settings. The message names the setting that differs."""


class UnfitSeatError(InputError):
    """A worker cannot do what the run asks on its device. Workers on other devices may go on without it."""


class TooManyBadError(ClipbatchError):
    """There are more bad images than `--max-bad` allows."""

    exit_code = 4


class NothingLabelledError(TooManyBadError):
    """None of the images could be labelled: of the first 1,000 of a process, or of a whole run or dataset."""


class DamagedError(ClipbatchError):
    """Files of a run are missing, damaged or belong to another run."""

    exit_code = 5


class UnfitError(ClipbatchError):
    """`doctor` found a problem that prevents runs on this machine."""

    exit_code = 5


class BusyError(ClipbatchError):
    """Another process adds an increment to the same dataset, or serves the same spool."""

    exit_code = 6


class InterruptedRunError(ClipbatchError):
    """A signal stopped the run. All published parts remain, and the same command resumes the run."""

    exit_code = 75


class UnreachableError(ClipbatchError):
    """A store or web server refuses every read, or answers none. Parts without such rows stay, and once the cause is
    repaired, the same command resumes."""

    exit_code = 75


def from_message(exit_code: int, message: str) -> ClipbatchError:
    """Rebuild the error that a worker process reported as an exit code and a message."""
    for kind in (InputError, TooManyBadError, DamagedError, UnreachableError):
        if kind.exit_code == exit_code:
            return kind(message)
    return ClipbatchError(message)


def brief(error: BaseException) -> str:
    """Type and first line of another library's exception. Some libraries raise messages of a whole page."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def reading_failed(what: str, error: OSError) -> InputError:
    """The error for a file of the user that cannot be read. what: the file, as the message names it."""
    return InputError(f"cannot read {what}: {error.strerror or error}; check its name and who may read it")


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """' Did you mean X?' with the entries of `known` that are most similar to `word`; '' if none is similar."""
    import difflib

    lower = {name.lower(): name for name in known}
    matches = [lower[name] for name in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.6)]
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
