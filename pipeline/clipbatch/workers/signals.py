"""Signals that ask for an end, raised as an exception and remembered.

Python drops an exception that a handler raises while a finaliser or a weak reference's callback runs, as happens
during imports. So `check` raises it again, and whatever loops for long calls it.
"""

from __future__ import annotations

import signal
from typing import NoReturn

from clipbatch.errors import InterruptedRunError

_seen: list[str] = []


def install() -> None:
    """Let SIGTERM, SIGINT, SIGHUP, and SIGUSR1 (as Slurm sends it ahead of a time limit: sbatch --signal) raise
    InterruptedRunError, but for those that are ignored, as under nohup."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _interrupted)


def check() -> None:
    """Raises: InterruptedRunError if a signal has asked for an end."""
    if _seen:
        raise InterruptedRunError(
            f"interrupted by {_seen[0]}: finished parts stay, and the same command goes on from there"
        )


def _interrupted(signum: int, _frame: object) -> NoReturn:
    _seen.append(signal.Signals(signum).name)
    check()
    raise AssertionError("check raises")
