"""Which images a person should look at first, for figures that hold for the whole run."""

from clipbatch.tools.review.queue import Draws, QueueRow, draw
from clipbatch.tools.review.write import make

__all__ = ["Draws", "QueueRow", "draw", "make"]
