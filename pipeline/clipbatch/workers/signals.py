"""Turns signals that ask this process to stop into an exception, and remembers them.

Python drops an exception that a signal handler raises while a finaliser or a weak reference's callback runs, which
happens during imports. So long loops call `check`, which raises the exception again.
"""

from __future__ import annotations

import signal
from typing import NoReturn

from clipbatch.errors import InterruptedRunError

_seen: list[str] = []


def install() -> None:
    """Let SIGTERM, SIGINT, SIGHUP and SIGUSR1 raise InterruptedRunError. Slurm can send SIGUSR1 before the time limit
    (sbatch --signal). Signals that the process ignores, as under nohup, stay ignored."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _interrupted)


def check() -> None:
    """Raises: InterruptedRunError if a signal has asked this process to stop."""
    if _seen:
        raise InterruptedRunError(
            f"interrupted by {_seen[0]}: finished parts stay, and the same command resumes the run"
        )


def received() -> str:
    """The name of the first signal that has asked this process to stop; empty if none has."""
    return _seen[0] if _seen else ""


def _interrupted(signum: int, _frame: object) -> NoReturn:
    _seen.append(signal.Signals(signum).name)
    check()
    raise AssertionError("check raises")
