"""A signal is not lost, whatever Python is doing when it comes."""

import subprocess
import sys

IN_A_FINALISER = """
import os, signal
from clipbatch import interrupts
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


def test_a_signal_that_meets_a_finaliser_is_raised_at_the_next_check() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FINALISER], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n"
    assert done.stderr.splitlines()[-1].startswith("clipbatch.errors.InterruptedRunError: interrupted by SIGTERM")
