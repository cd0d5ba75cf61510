"""What a process that looks at hostile images allows itself."""

from __future__ import annotations

import resource


def limit_memory(mib: int) -> None:
    """Let this process take `mib` more than it has mapped by now; libraries map far more than they use."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit = mapped + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
