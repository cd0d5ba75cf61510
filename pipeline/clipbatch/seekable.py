"""What files that are read by ranges share: where in them their reader is."""

from __future__ import annotations

import io


class Seekable(io.RawIOBase):
    """A file of known size, for one thread at a time. `read` is left to those who inherit."""

    size: int
    at: int = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at
