"""How good a run's labels are, measured against the truth."""

from clipbatch.tools.evaluate.evaluate import CONFUSION, EVALUATION, Request, evaluate, text

__all__ = ["CONFUSION", "EVALUATION", "Request", "evaluate", "text"]
