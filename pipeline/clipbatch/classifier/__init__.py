"""The Python API: a model that stays loaded, called with images wherever they are."""

from clipbatch.classifier.classifier import Classifier
from clipbatch.classifier.given import AnyImage
from clipbatch.classifier.results import Results

__all__ = ["AnyImage", "Classifier", "Results"]
