"""Pixels and prompts -> unit-length features, by an OpenCLIP model."""

from clipbatch.encode.model import Model, check_device, device_facts, load
from clipbatch.encode.normalise import Normalise
from clipbatch.encode.stage import Encode, trimmed
from clipbatch.encode.text import text_features

__all__ = ["Encode", "Model", "Normalise", "check_device", "device_facts", "load", "text_features", "trimmed"]
