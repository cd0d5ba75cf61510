"""Does this machine do what a run needs, and what is to be done where it does not?"""

from clipbatch.doctor.finding import Finding, lines
from clipbatch.doctor.looks import examine

__all__ = ["Finding", "examine", "lines"]
