"""Memory to read into."""

from __future__ import annotations

import ctypes

_new = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)


def unwritten(length: int) -> bytearray:
    """`length` bytes that may be anything, for whoever fills them all or cuts off the rest.

    `bytearray(length)` writes zeros, and so touches every page for the first time, while it holds Python's lock: half
    of the time for which reading a photograph would hold it.
    """
    made: bytearray = _new(None, length)
    return made
