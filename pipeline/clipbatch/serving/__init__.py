"""The Python API: a model that stays loaded, called with images wherever they are."""

from clipbatch.serving import process_state

with process_state.unchanged():
    from clipbatch.serving.classifier import Classifier
    from clipbatch.serving.images import AnyImage
    from clipbatch.serving.results import Results

__all__ = ["AnyImage", "Classifier", "Results"]
