"""Files of stores and the web, read by ranges.

`ReadAhead` is for a reader that goes from front to back: while it uses one block, the next ones are being fetched,
enough of them to hide the latency of a request. After a jump only one block is fetched. `RangedFile` fetches what is
asked for and no more.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from clipbatch.storage import stores
from clipbatch.storage.files import Container, LocalFile, Seekable
from clipbatch.storage.stores import Ranges
from clipbatch.storage.uris import is_url

BLOCK_BYTES = 4 * 2**20
# Blocks fetched ahead. With 50 ms for a request, that is enough for 640 MB/s.
AHEAD = 8
# Used blocks that are kept, since the columns of a struct are read in turn.
_KEPT = 4
_PIECE_BYTES = 4 * 2**20


class ReadAhead(Seekable):
    """For one thread at a time. At most `AHEAD` + `_KEPT` + 1 blocks are in memory."""

    def __init__(self, url: str) -> None:
        """Raises: as `stores.Ranges`."""
        self._ranges = Ranges(url)
        self.size = self._ranges.size
        # The last exception of `read`. The readers of file formats replace it with one that says less.
        self.lost: OSError | None = None
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="ahead")
        # By number, in the order of their use; those that were fetched ahead come last.
        self._blocks: dict[int, Future[bytearray]] = {}
        self._used: set[int] = set()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._blocks.clear()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, fewer only at the end of the file. Raises: OSError."""
        end = self.size if size is None or size < 0 else min(self.at + size, self.size)
        pieces = []
        while self.at < end:
            number, first = divmod(self.at, BLOCK_BYTES)
            pieces.append(memoryview(self._block(number))[first : first + end - self.at])
            self.at += len(pieces[-1])
        return b"".join(pieces)

    def _block(self, number: int) -> bytearray:
        ahead = AHEAD if number - 1 in self._used else 0
        wanted = range(number, min(number + 1 + ahead, -(-self.size // BLOCK_BYTES)))
        for n in wanted:
            self._blocks[n] = self._blocks.pop(n) if n in self._blocks else self._pool.submit(self._fetch, n)
        for n in list(self._blocks)[: -(AHEAD + _KEPT + 1)]:
            self._blocks.pop(n).cancel()
            self._used.discard(n)
        self._used.add(number)
        try:
            return self._blocks[number].result()
        except Exception as error:  # what fsspec's file systems raise is of any kind
            del self._blocks[number]
            self.lost = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
            raise self.lost from error

    def _fetch(self, number: int) -> bytearray:
        start = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, self.size - start)
        data = self._ranges.read_at(start, length)
        if len(data) < length:
            raise OSError(f"it has shrunk while it was read: {len(data)} of {length} bytes at {start}")
        return data


class RangedFile(Seekable):
    """The object at a url as a seekable file, for one thread at a time; each read is one request."""

    def __init__(self, url: str) -> None:
        """Raises: as `stores.Ranges`."""
        self._ranges = Ranges(url)
        self.size = self._ranges.size

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, fewer only at the end of the file. Raises: OSError."""
        left = max(0, self.size - self.at)
        data = self._ranges.read_at(self.at, left if size is None or size < 0 else min(size, left))
        self.at += len(data)
        return bytes(data)


def open_ranged(url: str) -> pa.NativeFile:
    """Open the object at `url`, of a store or the web, for reads at any position, which are tried again.

    Raises: as `stores.Ranges`.
    """
    return pa.PythonFile(RangedFile(url), mode="r")


class InPieces:
    """A remote container that is read from front to back: small reads are served from larger ones."""

    def __init__(self, container: Container) -> None:
        self._container, self.size = container, container.size
        self._start, self._piece = 0, bytearray()

    def read_at(self, start: int, length: int) -> bytearray:
        at = start - self._start
        if at < 0 or at + length > len(self._piece):
            at, self._start, self._piece = 0, start, self._container.read_at(start, max(length, _PIECE_BYTES))
        return self._piece[at : at + length]


def open_container(path: str) -> Container:
    """Open the container at `path`, a path or url.

    Raises: OSError where it cannot be opened; ValueError for a NUL in the name; InputError for a url of an unknown
    store.
    """
    return stores.Ranges(path) if is_url(path) else LocalFile(path)
