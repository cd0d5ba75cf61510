"""Items -> encoded bytes: files, members of archives, rows of tables, objects in a store."""

from clipbatch.stages.read.backpressure import Backpressure
from clipbatch.stages.read.fetch import Fetch
from clipbatch.stages.read.stage import Read

__all__ = ["Backpressure", "Fetch", "Read"]
