"""Does this machine do what a run needs, and what is to be done where it does not?"""

from clipbatch.tools.doctor.checks import examine
from clipbatch.tools.doctor.machine import Finding, lines

__all__ = ["Finding", "examine", "lines"]
