"""Items -> encoded bytes, from files, members of archives, rows of tables, and objects of stores and the web."""

from clipbatch.stages.read.backpressure import Backpressure
from clipbatch.stages.read.fetch import Fetch
from clipbatch.stages.read.refusals import Refusals
from clipbatch.stages.read.stage import Read

__all__ = ["Backpressure", "Fetch", "Read", "Refusals"]
