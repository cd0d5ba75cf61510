"""Items -> encoded bytes: files, members of archives, rows of tables, objects in a store."""

from clipbatch.read.fetch import Fetch
from clipbatch.read.gate import Gate
from clipbatch.read.stage import Read

__all__ = ["Fetch", "Gate", "Read"]
