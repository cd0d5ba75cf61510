"""Which decoder settings are the fastest for these images, this model and this machine?"""

from clipbatch.tune.search import Trial, Tuned, tune
from clipbatch.tune.settings_file import write

__all__ = ["Trial", "Tuned", "tune", "write"]
