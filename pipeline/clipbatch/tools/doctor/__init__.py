"""Checks whether this machine has what a run needs, and says what to do if it has not."""

from clipbatch.tools.doctor.checks import examine
from clipbatch.tools.doctor.machine import Finding, lines

__all__ = ["Finding", "examine", "lines"]
