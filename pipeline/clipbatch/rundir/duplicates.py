"""64-bit hashes of values, and the number of repeated uris in a listing, counted by them.

The count is exact unless two different uris have the same hash. For 100 million uris, the chance of that is 1 in 3,700;
for 20 million, 1 in 92,000.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# For longer listings we do not count: at eight bytes a row, the hashes would need more memory than all else in
# planning.
MAX_ROWS = 100_000_000
_WORD = 8
# Longer strings are hashed one by one. The vectorised loop runs once per eight bytes of the longest string.
_LONG_BYTES = 1024
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # multiplier of MurmurHash3's finaliser
_LENGTH_MIX = np.uint64(0x9E3779B97F4A7C15)
_ALL_ONES = np.uint64(2**64 - 1)


class Duplicates:
    """Collects the hashes of a listing's uris, batch by batch."""

    def __init__(self) -> None:
        self._hashes: bytearray | None = bytearray()

    def add(self, uris: pa.Array) -> None:
        """uris: strings without nulls."""
        if self._hashes is not None:
            self._hashes += hashes(uris).tobytes()
            if len(self._hashes) > MAX_ROWS * _WORD:
                self._hashes = None

    def count(self) -> int | None:
        """Number of rows whose uri an earlier row has; None if there are more than `MAX_ROWS` rows. Call it once."""
        if self._hashes is None:
            return None
        ordered = np.frombuffer(self._hashes, np.uint64)
        ordered.sort()
        return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each string. Mixes in words of eight bytes, as MurmurHash does; uses BLAKE2 for long strings."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]
    padded = np.concatenate([data, np.zeros(_WORD, np.uint8)])
    words = np.ndarray((len(padded) - _WORD + 1,), "<u8", padded, strides=(1,))  # a word starts at every byte
    begins, sizes = bounds[:-1] - bounds[0], np.diff(bounds)
    at = begins.copy()
    long = np.flatnonzero(sizes > _LONG_BYTES)
    left = np.where(sizes > _LONG_BYTES, 0, sizes)
    state: NDArray[np.uint64] = left.astype(np.uint64) * _LENGTH_MIX
    for _ in range(int(left.min()) // _WORD if len(left) else 0):  # the words that all strings have
        state = mixed(state, words[at])
        at += _WORD
        left -= _WORD
    longer = np.arange(len(left))
    while len(longer := longer[left[longer] > 0]):
        valid = np.minimum(left[longer], _WORD)  # bytes of the word that belong to the string
        word = words[at[longer]] & (_ALL_ONES >> ((_WORD - valid) * 8).astype(np.uint64))
        state[longer] = mixed(state[longer], word)
        at[longer] += _WORD
        left[longer] -= _WORD
    for row in long:
        text = data[begins[row] : begins[row] + sizes[row]].tobytes()
        state[row] = int.from_bytes(hashlib.blake2b(text, digest_size=_WORD).digest(), "little")
    return state


def value_hashes(values: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each value of a column of any type. Equal values have equal hashes, NaN and -0.0 included."""
    kind = values.type
    nulls = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_dictionary(kind):
        of_words = np.append(value_hashes(values.dictionary), np.uint64(0))
        state = of_words[values.indices.fill_null(len(values.dictionary)).to_numpy(zero_copy_only=False)]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        state = hashes(values.cast(pa.string()).fill_null(""))
    elif pa.types.is_integer(kind) or pa.types.is_temporal(kind) or pa.types.is_boolean(kind):
        if pa.types.is_temporal(kind):
            values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64())
        wide = pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
        state = values.cast(wide).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    elif pa.types.is_floating(kind):
        numbers = values.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        state = np.where(np.isnan(numbers), np.nan, numbers + 0.0).view(np.uint64)
    else:
        state = hashes(pa.array([repr(value) for value in values.to_pylist()], pa.string()))
    return np.where(nulls, _ALL_ONES, mixed(np.full(len(values), _LENGTH_MIX), state))


def mixed(state: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The state of a hash after it has taken one more word."""
    mixed: NDArray[np.uint64] = (state ^ words) * _MIX
    mixed ^= mixed >> np.uint64(32)
    return mixed
