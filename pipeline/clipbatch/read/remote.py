"""A whole object of a store or of the web, or why it cannot be had."""

from __future__ import annotations

from clipbatch import stores, web
from clipbatch.buffers import unwritten
from clipbatch.errors import InputError
from clipbatch.types import Encoded, Item, Reject
from clipbatch.uris import is_outside

_LASTING = (
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "PermissionDenied",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
    "Unauthenticated",
)
"""Words of stores' errors that another try would meet again."""


def read_remote(item: Item, max_bytes: int, timeout_s: float) -> Encoded | Reject:
    """The bytes of the object at `item.path`. timeout_s: for a web server's answer.

    Raises: OSError as it comes.
    """
    if stores.is_web(item.path):
        fence = item.fence
        allowed = (lambda url: not is_outside(url, fence)) if fence is not None else (lambda url: True)
        data = web.get(item.path, max_bytes=max_bytes, timeout_s=timeout_s, allowed=allowed)
        return Encoded(data=data) if data else Reject(status="empty", error="0 bytes")
    try:
        return _read_object(item.path, max_bytes)
    except InputError as error:
        return Reject(status="unreadable", error=str(error))
    except OSError:
        raise
    except ValueError as error:  # as for a//b
        return Reject(status="unreadable", error=f"no name of an object: {error}")
    except Exception as error:  # what fsspec's file systems raise is of any kind
        raise OSError(f"{type(error).__name__}: {error}") from error


def _read_object(url: str, max_bytes: int) -> Encoded | Reject:
    with stores.open_input_file(url) as file:
        size = file.size()
        if size == 0:
            return Reject(status="empty", error="0 bytes")
        if size > max_bytes:
            return Reject(status="too_large", error=f"{size} bytes, over the limit of {max_bytes}")
        data = unwritten(size)
        view, got = memoryview(data), 0
        while got < size and (count := file.readinto(view[got:])):
            got += count
    if got < size:
        return Reject(status="truncated", error=f"the object shrank while it was read: {got} of {size} bytes")
    return Encoded(data=data)


def passes(error: OSError) -> bool:
    """Whether another try may not meet `error` of a store or of the web."""
    if isinstance(error, web.WebError):
        return error.passes
    return not isinstance(error, PermissionError) and not any(word in str(error) for word in _LASTING)
