"""Which decoder settings are the fastest for these images, this model and this machine?"""

from clipbatch.tools.tune.search import Trial, Tuned, tune, write

__all__ = ["Trial", "Tuned", "tune", "write"]
