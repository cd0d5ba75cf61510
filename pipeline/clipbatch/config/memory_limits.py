"""Limits on the memory of this process.

There are two. A process that decodes suspect images limits itself. And the user may have set a limit (`ulimit -v`).
Under such a limit each library fails in its own way, so this module recognises the failures and explains them.
"""

from __future__ import annotations

import errno
import re
import resource

from clipbatch.errors import InputError, brief

# Address space without which libraries end the process silently, as soon as they are loaded.
_MIN_BYTES = 512 * 2**20
# Messages of libraries that could not get memory.
_FAILED = re.compile(
    r"allocat|bad_alloc|malloc|out of memory|MemoryError|failed to map|(start|launch) \w+ thread|thread creation",
    re.I,
)
# If this share of the limit is in use, we blame the limit for any error.
_NEARLY_FULL = 0.9


def limit_memory(mib: int) -> None:
    """Let this process map at most `mib` MiB more than now. (Libraries map far more memory than they use.)"""
    limit = _mapped() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check_memory() -> None:
    """Raises: InputError if the user's limit is too low for any command."""
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY and limit < _MIN_BYTES:
        raise _limit_error("it needs 1 GiB, and 8 GiB or more with a model")


def too_little_memory(error: BaseException | str) -> InputError | None:
    """The error to raise if too little memory caused `error`, an exception or the last output of a process; else None.

    Without a limit set by the user, only a MemoryError counts.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = limit != resource.RLIM_INFINITY
    text = error if isinstance(error, str) else brief(error)
    last_line = (text.strip().splitlines()[-1:] or [""])[0]
    if isinstance(error, MemoryError) and not limited:
        return InputError(f"this machine has too little memory: {last_line}; end other programs, or use a larger one")
    lacks_memory = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (bool(_FAILED.search(text)) and "CUDA" not in text)
        or (isinstance(error, BaseException) and _mapped() > _NEARLY_FULL * limit)
    )
    return _limit_error(last_line) if limited and lacks_memory else None


def _mapped() -> int:
    """Address space of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit_error(why: str) -> InputError:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] // 1024
    return InputError(
        f"the limit on memory, ulimit -v {limit} (KiB), is too low for this command ({why}): raise it, as with "
        "ulimit -v unlimited"
    )
