"""Finds the fastest decoder settings for the user's images and model on this machine."""

from clipbatch.tools.tune.search import Trial, Tuned, tune, write

__all__ = ["Trial", "Tuned", "tune", "write"]
