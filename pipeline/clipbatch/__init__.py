"""Label millions of images with an OpenCLIP model; leave Parquet that can be queried at once.

    from clipbatch import Classifier, run

    report = run("photos/", labels=["cat", "dog"], out="scores/")             # as the command line, for millions
    with Classifier(labels=["cat", "dog"]) as classifier:                     # a model that stays loaded
        results = classifier.classify(["a.jpg", image, array_HWC])            # Arrow, pandas, Polars, notebooks

Importing the package imports neither torch nor DALI; they come with the first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipbatch.runs.keywords import run
    from clipbatch.serving import Classifier, Results


__all__ = ["Classifier", "Results", "__version__", "run"]
__version__ = "0.1.0"

_HOMES = {"Classifier": "clipbatch.serving", "Results": "clipbatch.serving", "run": "clipbatch.runs.keywords"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipbatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
