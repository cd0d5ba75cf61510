"""A signal is not lost, whatever Python is doing when it arrives."""

import signal
import subprocess
import sys

import pytest

IN_A_FINALISER = """
import os, signal
from clipbatch.workers import signals as interrupts
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10_000):
            pass
interrupts.install()
Dying()
print("went on")
interrupts.check()
"""


def test_a_signal_during_a_finaliser_is_raised_at_the_next_check() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FINALISER], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n"
    assert done.stderr.splitlines()[-1].startswith("clipbatch.errors.InterruptedRunError: interrupted by SIGTERM")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_each_signal_is_named_in_the_error(name: str) -> None:
    code = (
        f"import signal\nfrom clipbatch.workers import signals\nsignals.install()\nsignal.raise_signal(signal.{name})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(f"clipbatch.errors.InterruptedRunError: interrupted by {name}:")


def test_an_ignored_signal_stays_ignored() -> None:
    code = "import signal\nfrom clipbatch.workers import signals\nsignals.install()\nsignal.raise_signal(signal.SIGHUP)"
    ignoring = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    finally:
        signal.signal(signal.SIGHUP, ignoring)
