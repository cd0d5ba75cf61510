"""The encode stage: an OpenCLIP model turns pixels and prompts into features of unit length."""

from clipbatch.stages.encode.model import Model, load
from clipbatch.stages.encode.stage import Encode, Normalise, trimmed
from clipbatch.stages.encode.text import label_features, text_features

__all__ = [
    "Encode",
    "Model",
    "Normalise",
    "label_features",
    "load",
    "text_features",
    "trimmed",
]
