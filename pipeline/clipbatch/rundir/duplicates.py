"""How many of a listing's uris were there before: counted exactly, by 64-bit hashes.

Among 100 million different uris the chance that any two share a hash is 1 in 3,700; for 20 million, 1 in 92,000.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Above it nothing is counted: eight bytes a row would be more memory than planning takes otherwise.
MAX_ROWS = 100_000_000
_WORD = 8
# Longer strings are hashed one by one: word by word takes a turn of the loop for every eight bytes of the longest.
_LONG_BYTES = 1024
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # multiplier of MurmurHash3's finaliser
_LENGTH_MIX = np.uint64(0x9E3779B97F4A7C15)
_ALL_ONES = np.uint64(2**64 - 1)


class Duplicates:
    """Takes the uris of a listing batch by batch."""

    def __init__(self) -> None:
        self._hashes: bytearray | None = bytearray()

    def add(self, uris: pa.Array) -> None:
        """uris: strings without nulls."""
        if self._hashes is not None:
            self._hashes += hashes(uris).tobytes()
            if len(self._hashes) > MAX_ROWS * _WORD:
                self._hashes = None

    def count(self) -> int | None:
        """Rows whose uri an earlier row has; None where there were more than `MAX_ROWS`. To be called once."""
        if self._hashes is None:
            return None
        found = np.frombuffer(self._hashes, np.uint64)
        found.sort()
        return int(np.count_nonzero(found[1:] == found[:-1]))


def hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each string: mixed in word by word, as MurmurHash does, or BLAKE2's of a long one."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]
    padded = np.concatenate([data, np.zeros(_WORD, np.uint8)])
    words = np.ndarray((len(padded) - _WORD + 1,), "<u8", padded, strides=(1,))  # one from every byte on
    begins, sizes = bounds[:-1] - bounds[0], np.diff(bounds)
    at = begins.copy()
    long = np.flatnonzero(sizes > _LONG_BYTES)
    left = np.where(sizes > _LONG_BYTES, 0, sizes)
    found: NDArray[np.uint64] = left.astype(np.uint64) * _LENGTH_MIX
    for _ in range(int(left.min()) // _WORD if len(left) else 0):  # words that all of them have
        found = _mixed(found, words[at])
        at += _WORD
        left -= _WORD
    longer = np.arange(len(left))
    while len(longer := longer[left[longer] > 0]):
        here = left[longer]
        word = words[at[longer]] & (_ALL_ONES >> ((_WORD - np.minimum(here, _WORD)) * 8).astype(np.uint64))
        found[longer] = _mixed(found[longer], word)
        at[longer] += _WORD
        left[longer] -= _WORD
    for row in long:
        text = data[begins[row] : begins[row] + sizes[row]].tobytes()
        found[row] = int.from_bytes(hashlib.blake2b(text, digest_size=_WORD).digest(), "little")
    return found


def _mixed(found: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = (found ^ words) * _MIX
    mixed ^= mixed >> np.uint64(32)
    return mixed
