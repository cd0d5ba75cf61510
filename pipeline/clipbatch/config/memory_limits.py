"""Limits on a process's memory: what one that looks at hostile images allows itself, and those of the caller
(`ulimit -v`), under which libraries fail in many ways of their own.
"""

from __future__ import annotations

import errno
import re
import resource

from clipbatch.errors import InputError, brief

_MIN_BYTES = 512 * 2**20
"""Of address space: with less, libraries end the process without a word, as soon as they are loaded."""
_FAILED = re.compile(
    r"allocat|bad_alloc|malloc|out of memory|MemoryError|failed to map|(start|launch) \w+ thread|thread creation",
    re.I,
)
"""What libraries say where a process gets no more memory."""
_NEARLY = 0.9
"""Of the limit: with so much taken, whatever a library complains of comes of the rest's being too little."""


def limit_memory(mib: int) -> None:
    """Let this process take `mib` more than it has mapped by now; libraries map far more than they use."""
    limit = _mapped() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check_memory() -> None:
    """Raises: InputError where the caller's limit is too low for any command."""
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY and limit < _MIN_BYTES:
        raise _refusal("it needs 1 GiB, and 8 GiB or more with a model")


def too_little_memory(error: BaseException | str) -> InputError | None:
    """The refusal where `error`, an exception or the last words of a process, comes of too little memory; else None.

    Anything but a MemoryError does so only where the caller has set a limit.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = limit != resource.RLIM_INFINITY
    words = error if isinstance(error, str) else brief(error)
    said = words.strip().splitlines()[-1:] or [""]
    if isinstance(error, MemoryError) and not limited:
        return InputError(f"this machine has too little memory: {said[0]}; end other programs, or use a larger one")
    of_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    of_memory = of_memory or (bool(_FAILED.search(words)) and "CUDA" not in words)
    of_memory = of_memory or (isinstance(error, BaseException) and _mapped() > _NEARLY * limit)
    return _refusal(said[0]) if limited and of_memory else None


def _mapped() -> int:
    """Bytes of address space that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _refusal(why: str) -> InputError:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] // 1024
    return InputError(
        f"the limit on memory, ulimit -v {limit} (KiB), is too low for this command ({why}): raise it, as with "
        "ulimit -v unlimited"
    )
