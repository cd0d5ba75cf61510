"""Members of an archive that say something of an image, as in WebDataset: `a/001.jpg` and `a/001.json`.

They share the folder and the name up to the first dot; what follows that dot is the column. Knows nothing of what they
hold.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from clipbatch.source.members import Member


class Sidecars:
    """The sidecars of one archive, found by the image's name."""

    def __init__(self, columns: Sequence[str]) -> None:
        """columns: suffixes without their first dot, in any case."""
        self._suffixes = [name.lower() for name in columns]
        self._found: dict[tuple[str, str], list[tuple[int, Member]]] = {}

    def take(self, at: int, member: Member) -> bool:
        """Keep `member`, entry number `at` of the archive, if its suffix is a column; whether it is."""
        key, suffix = _parts(member.name)
        if suffix not in self._suffixes or not member.is_file:
            return False
        self._found.setdefault((key, suffix), []).append((at, member))
        return True

    def of(self, at: int, image: Member) -> list[Member | None]:
        """The sidecar of `image`, entry number `at`, for each column: the nearest of that name."""
        key, _ = _parts(image.name)
        found = (self._found.get((key, suffix), ()) for suffix in self._suffixes)
        return [min(there, key=lambda one: abs(one[0] - at))[1] if there else None for there in found]


def _parts(name: str) -> tuple[str, str]:
    """The name up to the first dot of its last component, and what follows that dot, in lower case."""
    folder, base = posixpath.split(name)
    first, _, suffix = base.partition(".")
    return f"{folder}/{first}", suffix.lower()
